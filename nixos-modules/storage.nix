# PostgreSQL, vectors, cache, and the preparation that the daemons rely on.
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
in
{
  options.services.lares = {
    database.createLocally = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether to run PostgreSQL on this machine ({option}`services.postgresql`), with a database and a role named as
        {option}`services.lares.user`, reached over its socket without a password. It keeps tasks, events and keys: the
        only data that a backup needs. With `false`, set {option}`services.lares.store.urlFile` or
        {option}`services.lares.store.url`.
      '';
    };

    qdrant.createLocally = lib.mkOption {
      type = lib.types.bool;
      default = cfg.store.vectors.backend == "qdrant";
      defaultText = lib.literalExpression ''config.services.lares.store.vectors.backend == "qdrant"'';
      example = false;
      description = ''
        Whether to run Qdrant on this machine ({option}`services.qdrant`), on loopback, without sending usage
        statistics. What it holds can be made again from PostgreSQL, so it needs no backup.
      '';
    };

    valkey.createLocally = lib.mkOption {
      type = lib.types.bool;
      default = cfg.store.cache.backend == "redis";
      defaultText = lib.literalExpression ''config.services.lares.store.cache.backend == "redis"'';
      example = false;
      description = ''
        Whether to run Valkey on this machine ({option}`services.redis.servers.lares`), on a Unix socket, with at most
        256 MiB, nothing written to disk. It makes Valkey the package of all servers of {option}`services.redis` unless
        another one is set.
      '';
    };

    store = {
      url = lib.mkOption {
        type = lib.types.str;
        default = "";
        example = "postgresql://lares@10.77.0.1/lares";
        description = ''
          PostgreSQL to use, as a URL or a `key=value` connection string, without a password: everybody can read it. Set
          by {option}`services.lares.database.createLocally`. The connection is not encrypted: reach another machine
          through WireGuard or the like, and name its address in {option}`services.lares.allowedAddresses`.
        '';
      };
      urlFile = lib.mkOption {
        type = lib.types.nullOr types.secretFile;
        default = null;
        example = "/run/secrets/lares-database-url";
        description = ''
          File with the connection string, password included; wins over {option}`services.lares.store.url`. Root has to
          be able to read it: systemd hands it to the units as a credential.
        '';
      };
      poolSize = lib.mkOption {
        type = lib.types.ints.positive;
        default = 8;
        example = 16;
        description = "Most connections that each daemon keeps open. Each is a process of PostgreSQL, which by default allows 100 in all.";
      };
      connectTimeout = lib.mkOption {
        type = types.duration;
        default = "10s";
        example = "30s";
        description = "Longest wait for a connection; then the request fails.";
      };

      vectors = {
        backend = lib.mkOption {
          type = lib.types.enum [
            "memory"
            "qdrant"
          ];
          default = "memory";
          example = "qdrant";
          description = ''
            Where embeddings are searched. `memory`: exactly, in the daemon, kept in PostgreSQL; 100,000 vectors of 384
            dimensions take about 150 MiB. `qdrant`: a Qdrant server.
          '';
        };
        url = lib.mkOption {
          type = lib.types.str;
          default = "http://127.0.0.1:6334";
          example = "http://10.77.0.1:6334";
          description = "Qdrant's gRPC address, for `qdrant`.";
        };
        apiKeyFile = lib.mkOption {
          type = lib.types.nullOr types.secretFile;
          default = null;
          example = "/run/secrets/qdrant.key";
          description = "File with Qdrant's API key, handed over as a credential. `null`: no key is sent.";
        };
        dimensions = lib.mkOption {
          type = lib.types.ints.positive;
          default = 384;
          example = 768;
          description = ''
            Width of every vector, in numbers: that of the embedding model (384 for all-MiniLM-L6-v2). Memory and search
            time grow with it, and after a change every embedding has to be made again.
          '';
        };
      };

      cache = {
        backend = lib.mkOption {
          type = lib.types.enum [
            "in-process"
            "redis"
          ];
          default = "in-process";
          example = "redis";
          description = ''
            Where cached answers are kept. `in-process`: each daemon for itself, lost when it restarts. `redis`: Valkey or
            Redis, shared.
          '';
        };
        url = lib.mkOption {
          type = lib.types.str;
          default = "redis://127.0.0.1:6379";
          example = "redis+unix:///run/redis-lares/redis.sock";
          description = ''
            Valkey or Redis, as `redis://` or `redis+unix://`, for `redis`. Set by
            {option}`services.lares.valkey.createLocally`.
          '';
        };
        maxEntries = lib.mkOption {
          type = lib.types.ints.unsigned;
          default = 10000;
          example = 1000;
          description = "Most entries that the in-process cache keeps; the least recently used goes first. A cached answer takes some KiB.";
        };
      };
    };
  };

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      {
        services.lares.units = [ "lares-setup" ];

        systemd.services.lares-setup = service {
          name = "lares-setup";
          description = "Lares: tables and first keys";
          guide = "nixos.md";
          arguments = [ "setup" ];
          addresses = cfg.allowedAddresses;
          notifies = false;
          unit = {
            # Wanted and not required, here and by the daemons: no restart of one unit stops another that is well.
            wants = wiring.storeUnits;
            after = wiring.storeUnits ++ [ "network.target" ];
            # Another database needs its tables and keys too.
            restartTriggers = [ (builtins.hashString "sha256" (builtins.toJSON settings.store)) ];
          };
          serviceConfig.TimeoutStartSec = "5min";
        };
      }

      (lib.mkIf cfg.database.createLocally {
        services.lares.store.url = lib.mkDefault "postgresql:///${cfg.user}?host=/run/postgresql";
        services.postgresql = {
          enable = true;
          ensureDatabases = [ cfg.user ];
          ensureUsers = [
            {
              name = cfg.user;
              ensureDBOwnership = true;
            }
          ];
        };
      })

      (lib.mkIf cfg.qdrant.createLocally {
        services.qdrant = {
          enable = true;
          settings = {
            service = {
              host = "127.0.0.1";
              http_port = 6333;
              grpc_port = 6334;
            };
            telemetry_disabled = true;
          };
        };
      })

      (lib.mkIf cfg.valkey.createLocally {
        services.lares.store.cache.url = lib.mkDefault "redis+unix:///run/redis-lares/redis.sock";
        services.redis.package = lib.mkDefault pkgs.valkey;
        services.redis.servers.lares = {
          enable = true;
          # No TCP: the socket is open to the group redis-lares, which the daemons are given.
          port = 0;
          unixSocket = "/run/redis-lares/redis.sock";
          unixSocketPerm = 660;
          # A cache: nothing is written to disk, and the least recently used goes when it is full.
          save = [ ];
          settings = {
            maxmemory = "256mb";
            maxmemory-policy = "allkeys-lru";
          };
        };
      })
    ]
  );
}
