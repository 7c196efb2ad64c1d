# A service of lares.target: what all of them have in common.
{
  lib,
  utils,
  cfg,
}:
let
  harden = import ./hardening.nix { inherit lib; };
  wiring = import ./wiring.nix { inherit lib cfg; };

  whoever = {
    # What the unit says itself.
    own = { };
    # A user that systemd makes up, who has nothing.
    nobody.DynamicUser = true;
    # The user of the daemons, without what they keep.
    user = {
      User = cfg.user;
      Group = cfg.group;
    };
    # A daemon: with the keys and worktrees, and the store's secrets.
    daemon =
      name:
      whoever.user
      // {
        SupplementaryGroups = wiring.storeGroups;
        StateDirectory = baseNameOf cfg.stateDir;
        StateDirectoryMode = "0750";
        LoadCredential = (wiring.credentials name).load;
      };
  };
in
{
  # Without its suffix.
  name,
  description,
  # File below docs/.
  guide,
  # Of `lares`.
  arguments,
  # "daemon", "user", "nobody" or "own".
  as ? "daemon",
  # Addresses it may exchange packets with, as hardening.nix takes them.
  addresses ? [ ],
  # It tells systemd when it is ready and that it is alive; otherwise it does its work once.
  notifies ? true,
  # How systemd brings it back.
  restarts ? import ./restarts.nix,
  # What the unit has besides, and what its `serviceConfig` has.
  unit ? { },
  serviceConfig ? { },
}:
{
  inherit description;
  documentation = [ "https://github.com/lares-home/lares/blob/main/docs/${guide}" ];
  wantedBy = [ "lares.target" ];
  partOf = [ "lares.target" ];
  # It never gives up (restarts.nix).
  startLimitIntervalSec = 0;
}
// lib.optionalAttrs (as == "daemon") { inherit (wiring.credentials name) environment; }
// unit
// {
  serviceConfig =
    harden {
      inherit addresses;
      user = if as == "daemon" || as == "user" then cfg.user else null;
    }
    // restarts
    // {
      ExecStart = utils.escapeSystemdExecArgs (
        [
          (lib.getExe' cfg.package "lares")
          "--config"
          "/etc/lares/config.toml"
        ]
        ++ arguments
      );
    }
    // (
      if notifies then
        {
          Type = "notify";
          NotifyAccess = "main";
          TimeoutStopSec = "30s";
          KillMode = "mixed";
        }
      else
        {
          Type = "oneshot";
          RemainAfterExit = true;
        }
    )
    // (if as == "daemon" then whoever.daemon name else whoever.${as})
    // serviceConfig;
}
