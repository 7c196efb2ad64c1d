# A unit that runs programs of others, each behind a wall of its own: what it needs for making these walls, and what it
# and they see of the file system.
{ lib, config }:
let
  cfg = config.services.lares;
  # A user that is missing is an assertion's business.
  home = config.users.users.${cfg.user}.home or "/var/empty";

  hidden =
    path:
    lib.any (top: path == top || lib.hasPrefix "${top}/" path) [
      "/home"
      "/root"
      "/run/user"
    ];
  # The unit has its state directory without being shown it.
  outside = lib.filter (path: path != cfg.stateDir && !(lib.hasPrefix "${cfg.stateDir}/" path));
  # One that is missing keeps nobody from working with the others.
  ifThere = map (path: "-${path}");
in
{
  # "~/src" -> "/home/alice/src"
  expand = path: if lib.hasPrefix "~" path then home + lib.removePrefix "~" path else path;

  # Of paths that are expanded.
  serviceConfig =
    { readable, writable }:
    {
      # The daemon confines each program (Landlock, and a root directory of the program's own), and for that makes these
      # namespaces, as an unprivileged user, and mounts in them. A program is inside both walls: the unit's and its own.
      RestrictNamespaces = "user mnt ipc net";
      SystemCallFilter = [
        "@system-service"
        "@mount"
        "landlock_add_rule"
        "landlock_create_ruleset"
        "landlock_restrict_self"
      ];
      # They are any programs: just-in-time compilers (Node.js is one) make code in memory, many look up cores and
      # memory in /proc.
      MemoryDenyWriteExecute = false;
      ProcSubset = "all";
      # What they write is for the owner of the files and other tools as well.
      UMask = "0022";

      # Home directories are hidden and the rest is read-only: what a program may touch is shown path by path.
      ProtectHome = "tmpfs";
      BindPaths = ifThere (lib.unique (outside writable));
      BindReadOnlyPaths = ifThere (
        lib.unique (outside (lib.subtractLists writable (lib.filter hidden readable)))
      );
    };
}
