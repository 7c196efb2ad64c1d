//! The Landlock rules of a run.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Reach, Spec, paths};

/// Newest ABI these rules were written for; older kernels enforce the part they know.
const NEWEST: ABI = ABI::V10;

/// Devices that hold nothing and lead nowhere.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Directories that are the run's own when it has a root directory of its own.
const PRIVATE: [&str; 2] = ["/dev/shm", "/dev/pts"];

/// Confines this process for good; the Landlock ABI that was used.
pub(super) fn enforce(spec: &Spec) -> Result<u32, String> {
    let hint = "Set agents.sandbox.mode = \"off\" to run without confinement";
    let status = build(spec)
        .and_then(RulesetCreated::restrict_self)
        .map_err(|error| format!("Landlock refused the rules of this run: {error}. {hint}."))?;
    let abi = match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) | (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => {
            return Err(format!(
                "this kernel has no Landlock (Linux 5.13 or newer, with `landlock` in the lsm= list), so a run \
                 cannot be confined to its worktree. {hint}."
            ));
        }
        (_, LandlockStatus::Available { effective_abi, .. }) => effective_abi,
    };
    if spec.reach != Reach::Host && abi < ABI::V4 && !(spec.namespaces && spec.reach == Reach::Nothing) {
        return Err(format!(
            "this kernel cannot keep a run off the network: that takes Landlock ABI 4 (Linux 6.7; this one has \
             {}) or user namespaces. Set agents.sandbox.check_network = \"host\" for checks, or: {hint}.",
            abi as u32
        ));
    }
    Ok(abi as u32)
}

fn build(spec: &Spec) -> Result<RulesetCreated, RulesetError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::Signal)?
        .scope(Scope::AbstractUnixSocket)?;
    if spec.reach != Reach::Host {
        ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let mut created = ruleset.create()?;

    let read = AccessFs::from_read(NEWEST);
    let write = AccessFs::from_all(NEWEST) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let hidden = paths::hidden(spec);
    for path in paths::readable(spec) {
        for part in paths::without(&path, &hidden) {
            created = grant(created, &part, read)?;
        }
    }
    for path in paths::public_settings() {
        created = grant(created, &path, read)?;
    }
    for device in DEVICES {
        created = grant(created, Path::new(device), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate)?;
    }
    let own = ["home", "tmp"].map(|name| spec.scratch.join(name));
    let private: &[&str] = if spec.namespaces { &PRIVATE } else { &[] };
    for path in spec.write.iter().chain(&own).cloned().chain(private.iter().map(PathBuf::from)) {
        created = grant(created, &path, write)?;
    }
    if let Reach::Ports(ports) = &spec.reach {
        for &port in ports {
            created = created.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
    }
    Ok(created)
}

/// Allows `access` below `path`; a path that is not there needs no rule.
fn grant(created: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated, RulesetError> {
    let Ok(handle) = PathFd::new(path) else { return Ok(created) };
    let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
    created.add_rule(PathBeneath::new(handle, access))
}
