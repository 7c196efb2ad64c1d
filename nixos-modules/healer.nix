# What keeps units running: the healer as a user of its own, its helper, and what polkit lets that user do.
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

  settings = cfg.renderedSettings;
  units = settings.healer.units or { };
  user = "lares-healer";

  serviceName = lib.types.strMatching "[A-Za-z0-9:_.\\\\@-]+\\.service" // {
    description = ''full name of a service, such as "app.service"'';
    descriptionClass = "noun";
  };
  variableName = lib.types.strMatching "[A-Za-z_][A-Za-z0-9_]*" // {
    description = ''name of an environment variable, such as "PORT"'';
    descriptionClass = "noun";
  };

  probe = {
    http = lib.mkOption {
      type = lib.types.nullOr (lib.types.strMatching "https?://.+");
      default = null;
      example = "http://127.0.0.1:8080/health";
      description = "URL that answers with a status from 200 to 399 while the unit works.";
    };
    tcp = lib.mkOption {
      type = lib.types.nullOr (lib.types.strMatching "[0-9.]+:[0-9]+|\\[[0-9A-Fa-f:]+]:[0-9]+");
      default = null;
      example = "127.0.0.1:6379";
      description = "IP address and port that take connections while the unit works.";
    };
    command = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = lib.literalExpression ''[ (lib.getExe' pkgs.postgresql "pg_isready") ]'';
      description = ''
        Program with its arguments that exits with 0 while the unit works, started by its absolute path. It runs inside
        the healer's unit and as its user, who may read and write next to nothing. Every probe costs a process.
      '';
    };
    interval = lib.mkOption {
      type = types.duration;
      default = "5s";
      example = "1s";
      description = "Time between two probes, at least 100ms. A unit that hangs is noticed after `interval` × `threshold`.";
    };
    timeout = lib.mkOption {
      type = types.duration;
      default = "2s";
      example = "10s";
      description = "Longest that a probe takes, at least 100ms; then it has failed.";
    };
    threshold = lib.mkOption {
      type = lib.types.ints.positive;
      default = 3;
      example = 5;
      description = "Failed probes in a row that make the unit sick. One success starts the count again.";
    };
  };

  healed = {
    options = {
      enable = lib.mkOption {
        type = lib.types.bool;
        default = true;
        example = false;
        description = "Whether the healer looks after it. `false` takes one of Lares' own units out.";
      };
      keepRunning = lib.mkOption {
        type = lib.types.bool;
        default = false;
        example = true;
        description = ''
          Whether to start it even if somebody stopped it. Otherwise a unit that an operator stopped stays stopped.
        '';
      };
      inherit probe;
      dependencies = lib.mkOption {
        type = lib.types.listOf serviceName;
        default = [ ];
        example = [ "redis-app.service" ];
        description = ''
          Units it needs besides those that systemd knows of (`Requires=`, `BindsTo=`). One that is down is brought up
          first if it is in {option}`services.lares.healer.units` itself, and only reported if it is not.
        '';
      };
      database = lib.mkOption {
        type = lib.types.nullOr serviceName;
        default = null;
        example = "app-database.service";
        description = "Unit of the database it uses, restarted when its lock was left by a process that is gone. `null`: never.";
      };
      databaseFile = lib.mkOption {
        type = lib.types.nullOr types.hostPath;
        default = null;
        example = "/var/lib/app/app.sqlite";
        description = ''
          File whose lock tells who uses that database, such as the file of SQLite. `null`: the one that the log names.
        '';
      };
      memoryMax = lib.mkOption {
        type = lib.types.nullOr types.size;
        default = null;
        example = "2 GiB";
        description = ''
          Up to so much its `MemoryMax` may be raised, until the next boot, when the kernel ends it for memory again and
          again. Other units may then have so much less. `null`: never.
        '';
      };
      ports = lib.mkOption {
        type = lib.types.listOf lib.types.port;
        default = [ ];
        example = [
          18080
          18081
        ];
        description = ''
          TCP ports it may be moved to, until the next boot, when another process holds its own. Empty: never. Needs
          `portVariable`. Clients that are not in some unit's `portVariables` still ask the old port.
        '';
      };
      portVariable = lib.mkOption {
        type = lib.types.nullOr variableName;
        default = null;
        example = "PORT";
        description = "Environment variable that tells it its port.";
      };
      portVariables = lib.mkOption {
        type = lib.types.attrsOf variableName;
        default = { };
        example = {
          "app.service" = "APP_PORT";
        };
        description = ''
          Environment variables that tell it the port of other units, by the unit's name: when one of those is moved,
          this one is told and restarted.
        '';
      };
    };
  };

  # What Lares runs, as far as it is there. A model's fetch and the preparation end by themselves.
  database = lib.optional cfg.database.createLocally "postgresql.service";
  own = {
    "lares-coordinator.service" = lib.mkIf cfg.coordinator.enable {
      probe.http = lib.mkDefault "http://${settings.coordinator.listen}/health";
      dependencies = lib.mkDefault database;
    };
    "lares-ralph.service" = lib.mkIf cfg.ralph.enable {
      probe.http = lib.mkDefault "http://${settings.ralph.listen}/health";
      dependencies = lib.mkDefault database;
    };
    "lares-tools.service" = lib.mkIf cfg.tools.enable {
      probe.http = lib.mkDefault "http://${settings.tools.listen}/health";
      dependencies = lib.mkDefault database;
    };
    # They listen on sockets that a probe would need a role or a group for; systemd knows whether they run.
    "postgresql.service" = lib.mkIf cfg.database.createLocally { };
    "redis-lares.service" = lib.mkIf cfg.valkey.createLocally { };
    "qdrant.service" = lib.mkIf cfg.qdrant.createLocally {
      probe.http = lib.mkDefault "http://127.0.0.1:6333/healthz";
    };
  }
  // lib.mapAttrs' (
    name: _:
    lib.nameValuePair "lares-llama-${name}.service" {
      probe.http = lib.mkDefault "http://127.0.0.1:${toString settings.models.${name}.port}/health";
    }
  ) cfg.models;

  # The units that fetch the file of a model whose server is looked after: the remedy for one that is gone.
  fetches = lib.concatMap (
    name:
    lib.optional (
      lib.elem "lares-model-${name}" cfg.units && units ? "lares-llama-${name}.service"
    ) "lares-model-${name}.service"
  ) (lib.attrNames cfg.models);

  # Names become strings of JavaScript here and nothing else, whatever is in them.
  list = values: builtins.toJSON (lib.unique values);

  # Where probes go. Addresses are let through one by one; which address a name has only the resolver knows.
  isAddress = host: builtins.match "[0-9.]+|\\[[0-9A-Fa-f:]+]" host != null;
  probed = lib.filter (url: !wiring.onLoopback url) (
    lib.concatMap (
      unit:
      let
        probe = unit.probe or { };
      in
      lib.optional (probe ? http) probe.http ++ lib.optional (probe ? tcp) "tcp://${probe.tcp}"
    ) (lib.attrValues units)
  );
  hosts = lib.unique (map (url: toString (wiring.host url)) probed);

  # It asks models only for failures that no pattern knows, and not for every configuration.
  asks =
    settings.healer ? embedding_model
    || settings.healer ? diagnosis_model
    || lib.any (model: model.embeddings) (lib.attrValues settings.models);
  coordinatorUrl = settings.ralph.coordinator_url or "";

  addresses =
    if
      lib.any (host: !isAddress host) hosts
      || (asks && coordinatorUrl != "" && !wiring.onLoopback coordinatorUrl)
    then
      "any"
    else
      cfg.allowedAddresses ++ map (lib.replaceStrings [ "[" "]" ] [ "" "" ]) hosts;

  credentials = wiring.credentials user;
in
{
  options.services.lares.healer = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether to run the healer, which finds out why a unit fails and does what helps against it. Only the units in
        {option}`services.lares.healer.units` are ever touched. It takes about 16 MiB of memory.
      '';
    };
    includeLares = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether {option}`services.lares.healer.units` has everything that Lares runs without being told. `false` leaves
        only what you name yourself; `units."lares-ralph.service".enable = false` takes one out.
      '';
    };
    polkitRule = lib.mkOption {
      type = lib.types.str;
      internal = true;
      readOnly = true;
      description = "What polkit is told of the healer's user.";
    };

    listen = lib.mkOption {
      type = lib.types.strMatching "[0-9A-Za-z.:]+:[0-9]+|\\[[0-9A-Fa-f:]+]:[0-9]+";
      default = "127.0.0.1:8099";
      example = "127.0.0.1:18099";
      description = "Address and TCP port. Only loopback is accepted: keys travel in clear text.";
    };
    units = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule healed);
      default = { };
      example = lib.literalExpression ''
        {
          "app.service" = {
            probe.http = "http://127.0.0.1:3000/health";
            dependencies = [ "redis-app.service" ];
            memoryMax = "2 GiB";
          };
        }
      '';
      description = ''
        The units that the healer may act on, by full name (`app.service`); each has to be a service of this system.
        Polkit lets its user start, stop and restart exactly these and no other. Everything that Lares runs is there by
        itself, with its probe: the coordinator, ralph, the tools daemon, each model's server, and PostgreSQL, Qdrant and
        Valkey where they are made here. What you set for one of them wins;
        {option}`services.lares.healer.includeLares` leaves them all out.
      '';
    };
    cooldown = lib.mkOption {
      type = types.duration;
      default = "1m";
      example = "10s";
      description = ''
        Least time between two remedies that touch one unit, at least 1s. It doubles with each remedy in a row that did
        not help, after the first.
      '';
    };
    backoffMax = lib.mkOption {
      type = types.duration;
      default = "30m";
      example = "5m";
      description = "Most that the doubling of `cooldown` leads to; not less than `cooldown`.";
    };
    maxPerHour = lib.mkOption {
      type = lib.types.ints.positive;
      default = 6;
      example = 3;
      description = "Most remedies that touch one unit within an hour; then the incident waits.";
    };
    maxPerMinute = lib.mkOption {
      type = lib.types.ints.positive;
      default = 10;
      example = 30;
      description = ''
        Most units that remedies touch within a minute, all of them together, when much fails at once. A remedy that
        touches more than this by itself is never begun.
      '';
    };
    circuitAfter = lib.mkOption {
      type = lib.types.ints.positive;
      default = 3;
      example = 5;
      description = "After so many remedies in a row that did not help, nothing more is tried and a person is told.";
    };
    circuitOpen = lib.mkOption {
      type = types.duration;
      default = "10m";
      example = "1h";
      description = "How long until one more try then, at least 1s. It doubles with each that does not help, up to 32 times.";
    };
    verifyHold = lib.mkOption {
      type = types.duration;
      default = "10s";
      example = "1m";
      description = "A unit counts as recovered when it stayed well for so long, at least 100ms.";
    };
    verifyTimeout = lib.mkOption {
      type = types.duration;
      default = "2m";
      example = "10m";
      description = ''
        A remedy that has not made the unit well after so long did not help; not less than `verifyHold`. A unit that
        takes longer to start needs more.
      '';
    };
    patience = lib.mkOption {
      type = types.duration;
      default = "10m";
      example = "1h";
      description = "A person is told of an incident that only waits for so long, at least 1s.";
    };
    patternsFile = lib.mkOption {
      type = lib.types.nullOr lib.types.path;
      default = null;
      example = lib.literalExpression "./patterns.toml";
      description = ''
        File with further patterns of failures, or with others of the same names, as TOML; it may be in the store.
        Everybody has to be able to read it.
      '';
    };
    approveAfter = lib.mkOption {
      type = lib.types.ints.positive;
      default = 3;
      example = 10;
      description = "A remedy that helped so often against an unknown failure is used without asking.";
    };
    helper = lib.mkOption {
      type = types.hostPath;
      default = "/run/lares/helper.sock";
      example = "/run/lares-healer/helper.sock";
      description = ''
        Socket of the helper, which does as root what systemd lets no other user do: change a port or a memory limit
        until the next boot, end a process that a unit left behind, go back to an earlier generation of the system. It
        is started when it is needed and ends after half a minute. Everything else works without it.
      '';
    };
    embeddingModel = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "embed";
      description = ''
        Model that the coordinator offers for embeddings, by which failures that no pattern knows are compared. `null`:
        the first of {option}`services.lares.models` that makes embeddings; without any they are compared by their
        words.
      '';
    };
    diagnosisModel = lib.mkOption {
      type = lib.types.nullOr lib.types.str;
      default = null;
      example = "coder";
      description = ''
        Model that writes, into the timeline, what it makes of a failure that no pattern knows. It chooses nothing, and
        costs one answer of the model for each such failure. `null`: none is asked.
      '';
    };
  };

  config = lib.mkIf (cfg.enable && cfg.healer.enable) {
    services.lares = {
      units = [ user ];
      healer.units = lib.mkIf cfg.healer.includeLares own;

      healer.polkitRule = ''
        // What the healer of Lares may do, made from services.lares.healer.units. Of systemd it gets exactly these units
        // and verbs: a prefix or a missing name would let it start units of its own making. Its helper looks for itself
        // whether the configuration allows what it is asked for.
        polkit.addRule(function (action, subject) {
          if (subject.user !== ${builtins.toJSON user}) {
            return polkit.Result.NOT_HANDLED;
          }
          if (action.id === "org.freedesktop.systemd1.manage-units") {
            var units = ${list (lib.attrNames units ++ fetches)};
            var verbs = ${
              list [
                "start"
                "stop"
                "restart"
                "reset-failed"
                "ref"
              ]
            };
            return units.indexOf(action.lookup("unit")) >= 0 && verbs.indexOf(action.lookup("verb")) >= 0
              ? polkit.Result.YES
              : polkit.Result.NO;
          }
          var helper = ${
            list (
              map (verb: "org.lares.healer.${verb}") [
                "holder"
                "end-process"
                "set-memory-max"
                "set-port"
                "roll-back"
              ]
            )
          };
          return helper.indexOf(action.id) >= 0 ? polkit.Result.YES : polkit.Result.NOT_HANDLED;
        });
      '';
    };

    users.users.${user} = {
      isSystemUser = true;
      group = user;
      home = "/var/lib/${user}";
      description = "Lares, keeper of units";
    };
    users.groups.${user} = { };

    security.polkit = {
      enable = true;
      extraConfig = cfg.healer.polkitRule;
    };
    environment.systemPackages = [
      # The helper's own actions, which the rule speaks of. Nobody has them by default.
      (pkgs.writeTextDir "share/polkit-1/actions/org.lares.healer.policy" (
        builtins.readFile ./polkit/org.lares.healer.policy
      ))
    ];

    # PostgreSQL knows who is at its socket. The healer is not the user that the database belongs to, so that what one of
    # them may do to units the other may not; it shares the tables, and so takes that user's role.
    services.postgresql = lib.mkIf cfg.database.createLocally {
      identMap = ''
        lares ${cfg.user} ${cfg.user}
        lares ${user} ${cfg.user}
      '';
      # The first line that fits counts.
      authentication = lib.mkBefore ''
        local ${cfg.user} ${cfg.user} peer map=lares
      '';
    };

    systemd.services.${user} = service {
      name = user;
      description = "Lares: keeps units running";
      guide = "healing.md";
      arguments = [
        "serve"
        "healer"
      ];
      as = "own";
      inherit addresses;
      unit = {
        # It is not ordered after the database: that is one of the units it keeps running. Only the key that models ask
        # for has to be there.
        wants = [ "lares-setup.service" ];
        after = [ "network.target" ] ++ lib.optional asks "lares-setup.service";
        restartTriggers = [ cfg.configFile ];
        environment =
          credentials.environment
          // {
            # Where it keeps what the database has not taken yet. Keys and worktrees are not its business.
            LARES_STATE_DIR = "%S/${user}";
          }
          // lib.optionalAttrs cfg.database.createLocally {
            LARES_STORE__URL = "postgresql:///${cfg.user}?host=/run/postgresql&user=${cfg.user}";
          }
          // lib.optionalAttrs asks {
            LARES_RALPH__COORDINATOR_KEY_FILE = "%d/coordinator-key";
          };
      };
      serviceConfig = {
        User = user;
        Group = user;
        # Reads the journal of every unit.
        SupplementaryGroups = wiring.storeGroups ++ [ "systemd-journal" ];
        StateDirectory = user;
        StateDirectoryMode = "0700";
        LoadCredential =
          credentials.load
          ++ lib.optional asks "coordinator-key:${
            settings.ralph.coordinator_key_file or "${cfg.stateDir}/keys/agent.key"
          }";

        # Whoever ends it, it comes back: nobody else would notice.
        Restart = "always";
        WatchdogSec = "30s";
        # It is needed most when memory has ended.
        OOMScoreAdjust = -500;

        # It looks at what other users' processes do, hold and lock, and at the owners, modes and places of the files
        # that they could not open. In namespaces of its own it would see other owners, and files that are there as
        # missing.
        PrivateUsers = false;
        PrivateTmp = false;
        ProtectHome = "read-only";
        ProcSubset = "all";
        ProtectProc = "default";
      };
    };

    systemd.sockets.lares-healer-helper = {
      description = "Lares: socket of the healer's helper";
      documentation = [ "https://github.com/lares-home/lares/blob/main/docs/healing.md" ];
      wantedBy = [ "lares.target" ];
      partOf = [ "lares.target" ];
      listenStreams = [ settings.healer.helper ];
      socketConfig = {
        SocketMode = "0600";
        SocketUser = user;
        DirectoryMode = "0755";
        RemoveOnStop = true;
      };
    };

    systemd.services.lares-healer-helper = service {
      name = "lares-healer-helper";
      description = "Lares: does as root what the healer may ask for";
      guide = "healing.md";
      arguments = [
        "serve"
        "helper"
      ];
      as = "own";
      # Started by its socket, and again for the next request when it has ended.
      restarts = { };
      unit = {
        wantedBy = [ ];
        requires = [ "lares-healer-helper.socket" ];
        after = [ "lares-healer-helper.socket" ];
        restartTriggers = [ cfg.configFile ];
      };
      serviceConfig = {
        # Its socket is there from the start: nobody waits for it to be ready.
        Type = "exec";

        # Who listens where, and which process holds what, is in /proc of other users' processes; ending one that a unit
        # left behind takes the right to. The rest it asks of systemd, over D-Bus, where root needs no capability.
        CapabilityBoundingSet = [
          "CAP_DAC_READ_SEARCH"
          "CAP_KILL"
          "CAP_SYS_PTRACE"
        ];
        PrivateUsers = false;
        ProcSubset = "all";
        ProtectProc = "default";

        # Drop-ins that last until the next boot.
        ReadWritePaths = [ "/run/systemd/system" ];
        UMask = "0022";

        # It talks to sockets and to nobody else. Not PrivateNetwork=: it reads who listens on this machine's ports.
        IPAddressAllow = [ ];
        RestrictAddressFamilies = "AF_UNIX";

        MemoryMax = "128M";
        TasksMax = 32;
      };
    };
  };
}
