# Lares on NixOS: local models, their OpenAI-compatible door, and the loop that works on coding tasks, as systemd units.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.lares;
in
{
  imports = [
    ./agents.nix
    ./assertions.nix
    ./coordinator.nix
    ./healer.nix
    ./inference.nix
    ./ralph.nix
    ./security.nix
    ./settings.nix
    ./storage.nix
    ./tools.nix
  ];

  options.services.lares = {
    enable = lib.mkEnableOption ''
      Lares, a home for local AI coding agents: tuned llama.cpp servers behind one OpenAI-compatible door, and a loop
      that runs an agent until a task's check passes. Everything listens on loopback only'';

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.lares or (pkgs.callPackage ../nix/package.nix { });
      defaultText = lib.literalExpression "pkgs.lares";
      example = lib.literalExpression "inputs.lares.packages.\${pkgs.stdenv.hostPlatform.system}.lares";
      description = "The package that has the `lares` program. It also checks the configuration when the system is built.";
    };

    user = lib.mkOption {
      type = lib.types.strMatching "[a-z_][a-z0-9_-]*";
      default = "lares";
      example = "alice";
      description = ''
        User that the coordinator, ralph, the tools daemon and their preparation run as; made when it is `lares`. Name the person whose
        repositories ralph works on if they are not to be owned by a user of their own: git refuses repositories of
        other users. The local database and its role have the same name.
      '';
    };

    group = lib.mkOption {
      type = lib.types.strMatching "[a-z_][a-z0-9_-]*";
      default = "lares";
      example = "users";
      description = "Group that they run as; made when it is `lares`.";
    };

    stateDir = lib.mkOption {
      type = lib.types.strMatching "/var/lib/[A-Za-z0-9_][A-Za-z0-9_.-]*";
      default = "/var/lib/lares";
      example = "/var/lib/lares-staging";
      description = ''
        Directory of the keys and worktrees, directly below `/var/lib` because systemd makes it (`StateDirectory=`).
        It takes little space: worktrees last as long as their tasks. Moving it leaves the old one where it was.
      '';
    };

    allowedAddresses = lib.mkOption {
      type = lib.types.listOf (lib.types.strMatching "[0-9A-Fa-f.:]+(/[0-9]+)?");
      default = [ ];
      example = [ "10.77.0.1" ];
      description = ''
        IP addresses or networks besides loopback that the coordinator, ralph, the tools daemon and their preparation may
        exchange packets with. Needed for a PostgreSQL, Qdrant or Valkey on another machine: the units cannot reach anything else. An
        upstream that is not on loopback lifts the filter of the coordinator by itself, a tool server that is not on
        loopback that of the tools daemon.
      '';
    };

    log = {
      level = lib.mkOption {
        type = lib.types.str;
        default = "info";
        example = "info,lares_ralph=debug";
        description = ''
          What is logged, as a filter of `tracing`. `debug` writes some lines a request into the journal and `trace`
          many; neither contains keys.
        '';
      };
      format = lib.mkOption {
        type = lib.types.enum [
          "auto"
          "text"
          "json"
          "journald"
        ];
        default = "auto";
        example = "json";
        description = "Shape of a log line. `auto` is `journald` under systemd: structured fields that `journalctl -o json` shows.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    users.users = lib.mkIf (cfg.user == "lares") {
      lares = {
        isSystemUser = true;
        inherit (cfg) group;
        home = cfg.stateDir;
        description = "Lares, home of coding agents";
      };
    };
    users.groups = lib.mkIf (cfg.group == "lares") { lares = { }; };

    systemd.targets.lares = {
      description = "Lares";
      documentation = [ "https://github.com/lares-home/lares" ];
      wantedBy = [ "multi-user.target" ];
      # Reached when everything is ready: `systemctl start lares.target` waits for that.
      after = map (name: "${name}.service") cfg.units;
      # Fetching a model may take an hour, and neither a boot nor `nixos-rebuild switch` should: without the default
      # dependencies multi-user.target does not wait, and the switch leaves this target to it.
      unitConfig.DefaultDependencies = false;
      unitConfig.X-OnlyManualStart = true;
      conflicts = [ "shutdown.target" ];
      before = [ "shutdown.target" ];
    };
  };
}
