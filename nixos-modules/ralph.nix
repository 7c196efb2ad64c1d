# The loop that works on coding tasks.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  cfg = config.services.lares;
  types = import ./types.nix { inherit lib; };
  service = import ./service.nix { inherit lib utils cfg; };
  wiring = import ./wiring.nix { inherit lib cfg; };
  confining = import ./confining.nix { inherit lib config; };

  settings = cfg.renderedSettings;
  readable = map confining.expand settings.agents.sandbox.read;
  writable =
    cfg.ralph.repositories
    ++ map confining.expand settings.agents.sandbox.write
    ++ lib.optional (settings.ralph ? worktrees_dir) settings.ralph.worktrees_dir;

  coordinatorUrl = settings.ralph.coordinator_url or "";
  addresses =
    if settings.agents.sandbox.check_network == "host" then
      "any"
    else if coordinatorUrl != "" && !wiring.onLoopback coordinatorUrl then
      "any"
    else
      cfg.allowedAddresses;
in
{
  options.services.lares.ralph = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether to run ralph, which works on tasks: an agent changes a worktree until the task's check exits 0. Idle, it
        takes about 16 MiB of memory.
      '';
    };
    repositories = lib.mkOption {
      type = lib.types.listOf types.hostPath;
      default = [ ];
      example = [ "/home/alice/src/app" ];
      description = ''
        Git repositories, or directories of them, that tasks may name. ralph's unit sees nothing else below `/home` and
        can write nowhere else. They have to belong to {option}`services.lares.user`. One that does not exist when ralph
        starts is passed over.
      '';
    };
    path = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [ ];
      example = lib.literalExpression "[ pkgs.cargo pkgs.rustc pkgs.gcc ]";
      description = "Packages for the checks of tasks, put on their `PATH`. Git, bash and coreutils are there already.";
    };

    listen = lib.mkOption {
      type = lib.types.strMatching "[0-9A-Za-z.:]+:[0-9]+|\\[[0-9A-Fa-f:]+]:[0-9]+";
      default = "127.0.0.1:8098";
      example = "127.0.0.1:18098";
      description = "Address and TCP port. Only loopback is accepted: keys travel in clear text.";
    };
    workers = lib.mkOption {
      type = lib.types.ints.positive;
      default = 1;
      example = 4;
      description = ''
        Tasks worked on at the same time by this machine. More than the models' slots together only makes them wait for
        each other; each needs the memory of its check as well.
      '';
    };
    worktreesDir = lib.mkOption {
      type = lib.types.nullOr types.hostPath;
      default = null;
      example = "/srv/worktrees";
      description = ''
        Where worktrees are made, one checkout a task. It has to exist and to be writable for
        {option}`services.lares.user`. `null`: `worktrees` in the state directory.
      '';
    };
    coordinatorUrl = lib.mkOption {
      type = lib.types.str;
      default = "";
      example = "https://lares.example.org/v1";
      description = ''
        Base URL of the coordinator up to and including `/v1`. Empty: the one of this machine. Another one needs
        `coordinatorKeyFile`.
      '';
    };
    coordinatorKeyFile = lib.mkOption {
      type = lib.types.nullOr types.secretFile;
      default = null;
      example = "/run/secrets/lares-agent.key";
      description = ''
        File with the key that ralph shows the coordinator, handed over as a credential. `null`: `keys/agent.key` in the
        state directory, which is made.
      '';
    };
    lease = lib.mkOption {
      type = types.duration;
      default = "30s";
      example = "2m";
      description = ''
        How long a worker may be silent before another takes its task over, at least 3s. The heartbeat comes three times
        as often, each a small write to PostgreSQL.
      '';
    };
    maxIterations = lib.mkOption {
      type = lib.types.ints.positive;
      default = 10;
      example = 5;
      description = "Iterations (one run of the agent and of the check) of a task that does not say.";
    };
    timeout = lib.mkOption {
      type = types.duration;
      default = "1h";
      example = "4h";
      description = "Longest a task may run when it does not say.";
    };
    iterationTimeout = lib.mkOption {
      type = types.duration;
      default = "15m";
      example = "5m";
      description = "Longest one run of the agent; then its whole process tree is ended.";
    };
    checkTimeout = lib.mkOption {
      type = types.duration;
      default = "5m";
      example = "30m";
      description = "Longest one run of the check; then its whole process tree is ended and the check has failed.";
    };
    maxQueued = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 1000;
      example = 100;
      description = "Most tasks that wait; one more gets 429.";
    };
    minFreeDisk = lib.mkOption {
      type = types.size;
      default = "256 MiB";
      example = "5 GiB";
      description = "Free space that the state directory must have before an iteration starts.";
    };
  };

  config = lib.mkIf (cfg.enable && cfg.ralph.enable) {
    services.lares.units = [ "lares-ralph" ];

    systemd.services.lares-ralph = service {
      name = "lares-ralph";
      description = "Lares: works on tasks until their check passes";
      guide = "tasks.md";
      arguments = [
        "serve"
        "ralph"
      ];
      inherit addresses;
      unit = {
        wants = [ "lares-setup.service" ];
        after = [
          "lares-setup.service"
          "network.target"
        ]
        ++ lib.optional cfg.coordinator.enable "lares-coordinator.service"
        ++ wiring.storeUnits;
        restartTriggers = [ cfg.configFile ];
        path = [
          pkgs.bash
          pkgs.coreutils
          pkgs.git
        ]
        ++ cfg.ralph.path;
      };
      serviceConfig = {
        WatchdogSec = "30s";
      }
      // confining.serviceConfig { inherit readable writable; };
    };
  };
}
