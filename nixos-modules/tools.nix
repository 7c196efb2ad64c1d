# Every MCP tool of the machine behind one door: found, vetted, searchable by meaning.
{
  config,
  lib,
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
  inherit (settings.tools) discovery search;
  servers = wiring.toolServers;
  ofServers = get: lib.concatMap get (lib.attrValues servers);

  path = lib.types.strMatching "(~|/)[^[:space:]:%\"'\\\\]*" // {
    description = "absolute path or one that begins with ~, as a string, without spaces, colons, quotes, backslashes and percent signs";
    descriptionClass = "noun";
  };
  url = lib.types.strMatching "https?://.+" // {
    description = ''URL that begins with "http://" or "https://"'';
    descriptionClass = "noun";
  };
  action = lib.types.enum [
    "allow"
    "ask"
    "deny"
  ];
  mode = lib.types.enum [
    "search"
    "list"
    "both"
  ];

  server = {
    options = {
      command = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = lib.literalExpression ''[ (lib.getExe pkgs.mcp-server-git) "--repository" "/srv/app" ]'';
        description = ''
          Program with its arguments that speaks MCP on standard input and output. No shell is involved; a name without
          `/` is looked for in {option}`services.lares.tools.path`. It runs as long as the daemon does and takes the memory
          of its runtime. Exactly one of `command` and `url` is set.
        '';
      };
      url = lib.mkOption {
        type = lib.types.nullOr url;
        default = null;
        example = "http://127.0.0.1:9400/mcp";
        description = ''
          URL of a server that speaks streamable HTTP. One that is not on loopback lifts the address filter of the unit,
          and what tools are called with leaves the machine.
        '';
      };
      env = lib.mkOption {
        type = lib.types.attrsOf lib.types.str;
        default = { };
        example = {
          LOG_LEVEL = "warning";
        };
        description = ''
          Environment variables of the program. It gets these, `PATH`, `HOME`, `LANG` and `TZ`, and nothing else.
          Everybody can read them: secrets go into `envFiles`.
        '';
      };
      envFiles = lib.mkOption {
        type = lib.types.attrsOf types.secretFile;
        default = { };
        example = {
          GITHUB_TOKEN = "/run/secrets/github-token";
        };
        description = ''
          Environment variables whose value is in a file. Root has to be able to read it: systemd hands it to the daemon
          as a credential, and the daemon to this program alone. A file that is missing keeps the daemon from starting.
        '';
      };
      headerFiles = lib.mkOption {
        type = lib.types.attrsOf types.secretFile;
        default = { };
        example = {
          Authorization = "/run/secrets/weather-authorization";
        };
        description = ''
          HTTP headers whose whole value (such as `Bearer …`) is in a file, for a server with a `url`; handed over as
          those of `envFiles`.
        '';
      };
      directory = lib.mkOption {
        type = lib.types.nullOr types.hostPath;
        default = null;
        example = "/srv/app";
        description = "Directory the program runs in. `null`: a private empty one, gone when the program ends.";
      };
      read = lib.mkOption {
        type = lib.types.listOf path;
        default = [ ];
        example = [ "/srv/app" ];
        description = ''
          Paths, as strings, that the program may read and execute besides the system's own (`/nix/store` among them).
          `~` is the home directory of {option}`services.lares.user`, who has to be able to read them. What does not
          exist is passed over.
        '';
      };
      write = lib.mkOption {
        type = lib.types.listOf path;
        default = [ ];
        example = [ "/srv/notes" ];
        description = ''
          Paths, as strings, that the program may read and write; {option}`services.lares.user` has to be able to.
          Nothing else that it writes outlives it.
        '';
      };
      network = lib.mkOption {
        type = lib.types.enum [
          "none"
          "host"
        ];
        default = "none";
        example = "host";
        description = ''
          TCP of the program. `none`: no network at all, not even loopback. `host`: that of the machine, which also lifts
          the address filter of the unit.
        '';
      };
      trusted = lib.mkOption {
        type = lib.types.bool;
        default = false;
        example = true;
        description = ''
          Whether new and changed tools of this server are used without asking, unless they look poisoned. Otherwise they
          wait for `lares tools approve`.
        '';
      };
      enabled = lib.mkOption {
        type = lib.types.bool;
        default = true;
        example = false;
        description = "Whether it is used at all. One that is not is neither started nor handed its secrets.";
      };
      protocol = lib.mkOption {
        type = lib.types.enum [
          "auto"
          "sessions"
          "stateless"
        ];
        default = "auto";
        example = "sessions";
        description = ''
          Which revisions of the protocol are spoken with it. `sessions`: 2025-11-25 and before, with `initialize`.
          `stateless`: from 2026-07-28 on, with `server/discover`. `auto` tries the newer way first, which costs an older
          server one more start.
        '';
      };
      tags = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "code" ];
        description = "Tags that all its tools carry, to search by.";
      };
      callTimeout = lib.mkOption {
        type = lib.types.nullOr types.duration;
        default = null;
        example = "5m";
        description = "Longest call. `null`: {option}`services.lares.tools.callTimeout`.";
      };
      maxConcurrent = lib.mkOption {
        type = lib.types.ints.positive;
        default = 8;
        example = 1;
        description = "Most calls at the same time; further ones wait.";
      };
    };
  };

  rule = {
    options = {
      tools = lib.mkOption {
        type = lib.types.nonEmptyListOf lib.types.str;
        example = [ "git__*" ];
        description = "The tools it is for, as `SERVER__TOOL`; `*` stands for anything.";
      };
      keys = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "laptop" ];
        description = "The keys it is for, by their names in `lares key list`. Empty: all.";
      };
      action = lib.mkOption {
        type = action;
        example = "ask";
        description = ''
          What happens: `allow` carries the call out, `ask` has a person asked first, through the client, and `deny`
          refuses it and does not show the tool.
        '';
      };
    };
  };

  toolset = {
    options = {
      tools = lib.mkOption {
        type = lib.types.nonEmptyListOf lib.types.str;
        default = [ "*" ];
        example = [
          "git__*"
          "time__*"
        ];
        description = "Its tools, as `SERVER__TOOL`; `*` stands for anything.";
      };
      keys = lib.mkOption {
        type = lib.types.listOf lib.types.str;
        default = [ ];
        example = [ "laptop" ];
        description = ''
          The keys, by their names in `lares key list`, that see this selection and nothing else at `/mcp` too. A key is
          in one toolset at most. Empty: every key may use `/mcp/NAME`.
        '';
      };
      mode = lib.mkOption {
        type = lib.types.nullOr mode;
        default = null;
        example = "list";
        description = "What its clients are shown. `null`: {option}`services.lares.tools.gateway.mode`.";
      };
      namespaces = lib.mkOption {
        type = lib.types.bool;
        default = true;
        example = false;
        description = ''
          Whether names are shown as `SERVER__TOOL`. With `false` they are those that the servers gave, and no two may be
          the same.
        '';
      };
    };
  };

  # Where it goes besides loopback: servers and models elsewhere have names, whose addresses only the resolver knows.
  coordinatorUrl = settings.ralph.coordinator_url or "";
  goesElsewhere =
    lib.any (server: (server.network or "none") == "host") (lib.attrValues servers)
    || discovery.client_files != [ ]
    || lib.any (url: !wiring.onLoopback url) (
      ofServers (server: lib.optional (server ? url) server.url)
      ++ lib.attrValues (discovery.unit_urls or { })
      ++ lib.optionals (search.embedding == "endpoint") (
        if search ? url then [ search.url ] else lib.optional (coordinatorUrl != "") coordinatorUrl
      )
    );

  fetches = lib.optional (
    wiring.embeddingModel != null
  ) "lares-model-${wiring.embeddingModel}.service";
in
{
  options.services.lares.tools = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether to run the tools daemon: it keeps MCP servers connected, holds back tools that nobody has looked at, and
        offers all others to agents through one MCP server, searchable by meaning. Its memory is that of its embedding
        model and of the programs it runs.
      '';
    };
    path = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [ ];
      example = lib.literalExpression "[ pkgs.nodejs pkgs.git ]";
      description = "Packages for tool servers, put on their `PATH`.";
    };
    memoryMax = lib.mkOption {
      type = lib.types.nullOr types.size;
      default = null;
      example = "4 GiB";
      description = ''
        Memory that the daemon and all programs it runs may take together (`MemoryMax=`). Over it the kernel ends the
        largest of them, which is then started again. `null`: no bound.
      '';
    };
    cpuQuota = lib.mkOption {
      type = lib.types.nullOr (
        lib.types.strMatching "[1-9][0-9]*%"
        // {
          description = ''percentage of one core, such as "200%"'';
          descriptionClass = "noun";
        }
      );
      default = null;
      example = "200%";
      description = ''
        Most processor time of the daemon and all programs it runs together (`CPUQuota=`); `200%` are two cores.
        `null`: no bound.
      '';
    };
    tasksMax = lib.mkOption {
      type = lib.types.ints.positive;
      default = 4096;
      example = 1024;
      description = ''
        Most processes and threads of the daemon and all programs it runs together (`TasksMax=`).
      '';
    };

    listen = lib.mkOption {
      type = lib.types.strMatching "[0-9A-Za-z.:]+:[0-9]+|\\[[0-9A-Fa-f:]+]:[0-9]+";
      default = "127.0.0.1:8091";
      example = "127.0.0.1:18091";
      description = ''
        Address and TCP port; MCP clients connect to `/mcp` there, with a key. Only loopback is accepted: keys travel in
        clear text.
      '';
    };
    servers = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule server);
      default = { };
      example = lib.literalExpression ''
        {
          git = {
            command = [ (lib.getExe pkgs.mcp-server-git) ];
            read = [ "/srv/app" ];
            trusted = true;
          };
          weather = {
            url = "https://mcp.example.org/mcp";
            headerFiles.Authorization = "/run/secrets/weather-authorization";
          };
        }
      '';
      description = ''
        The MCP servers, by the name that their tools carry (`NAME__TOOL`): up to 32 of a-z, 0-9, `-`, `_` and `.`. Each
        program runs in a sandbox of its own, as {option}`services.lares.user`, and sees of the files and the network
        what is set here. Of {option}`services.lares.agents.sandbox` it has the bounds `maxMemory`, `maxFile` and
        `maxProcesses`, and `mode`, which says whether it may run where the kernel cannot confine it.
      '';
    };

    discovery = {
      interval = lib.mkOption {
        type = types.duration;
        default = "5m";
        example = "1m";
        description = ''
          How often tool servers are looked for and their lists are fetched anew, at least 1s. What a server itself
          announces is seen at once. A round opens no new process or connection to servers that are connected.
        '';
      };
      clientFiles = lib.mkOption {
        type = lib.types.listOf path;
        default = [ ];
        example = [
          "/home/alice/.claude.json"
          "/home/alice/.cursor/mcp.json"
        ];
        description = ''
          Files of MCP clients, as strings, that are read for servers; nothing in them is run before
          `lares tools approve`. The unit sees no home directory, so none are named here by default; each that is named
          is shown to it, and {option}`services.lares.user` has to be able to read it. A file that its client replaces is
          read anew after `systemctl restart lares-tools`. Such files name servers anywhere, so naming one lifts the
          address filter of the unit.
        '';
      };
      ports = lib.mkOption {
        type = lib.types.listOf (
          lib.types.strMatching "[0-9]+(-[0-9]+)?"
          // {
            description = ''TCP port or range of ports, such as "8000" or "8000-8100"'';
            descriptionClass = "noun";
          }
        );
        default = [ ];
        example = [ "8000-8100" ];
        description = ''
          Loopback ports that are asked whether they speak MCP. Whatever listens there gets up to four HTTP requests, and
          none for a while when it did not understand them. Empty: none.
        '';
      };
      units = lib.mkOption {
        type = lib.types.bool;
        default = true;
        example = false;
        description = ''
          Whether to look for services that declare themselves: `serviceConfig.X-MCP = "http://127.0.0.1:9400/mcp"`,
          which systemd itself passes over. URLs on loopback only.
        '';
      };
      unitUrls = lib.mkOption {
        type = lib.types.attrsOf url;
        default = { };
        example = {
          "weather.service" = "http://127.0.0.1:9400/mcp";
        };
        description = "Further units that are MCP servers, by full name, with the URL they serve.";
      };
    };

    search = {
      embedding = lib.mkOption {
        type = lib.types.enum [
          "in-process"
          "endpoint"
          "none"
        ];
        default = "in-process";
        example = "none";
        description = ''
          What makes the embeddings by which tools are found. `in-process`: llama.cpp in the daemon, on the processor.
          `endpoint`: a server with `/v1/embeddings`. `none`: tools are found by their words alone, and no model is
          fetched.
        '';
      };
      model = lib.mkOption {
        type = lib.types.str;
        default = "all-minilm-l6-v2";
        example = "/data/models/embed.gguf";
        description = ''
          For `in-process`: a model of the catalog, which the unit `lares-model-NAME` fetches, or the path of a GGUF file
          that is readable for everybody. For `endpoint`: the name of the model there. Its width is that of
          {option}`services.lares.store.vectors.dimensions`. After a change all tools are embedded anew, in the
          background.
        '';
      };
      url = lib.mkOption {
        type = lib.types.nullOr url;
        default = null;
        example = "http://127.0.0.1:9500/v1";
        description = ''
          For `endpoint`: base URL up to and including `/v1`. Descriptions of tools and queries are sent there. `null`:
          the coordinator's.
        '';
      };
      apiKeyFile = lib.mkOption {
        type = lib.types.nullOr types.secretFile;
        default = null;
        example = "/run/secrets/embeddings.key";
        description = "For `endpoint`: file with the key shown there, handed over as a credential. `null`: none, or the agents' for the coordinator.";
      };
      threads = lib.mkOption {
        type = lib.types.ints.positive;
        default = 1;
        example = 4;
        description = "For `in-process`: threads of one embedding. A query is short, and more than one seldom makes it faster.";
      };
      limit = lib.mkOption {
        type = lib.types.ints.positive;
        default = 10;
        example = 5;
        description = "Hits of a search that does not say. Each costs the agent that reads it some tokens.";
      };
    };

    gateway = {
      mode = lib.mkOption {
        type = mode;
        default = "search";
        example = "both";
        description = ''
          What a client at `/mcp` is shown. `search`: `search_tools`, `get_tool_details` and `call_tool`, some hundred
          tokens however many tools there are. `list`: every tool it may call. `both`: both.
        '';
      };
      maxSessions = lib.mkOption {
        type = lib.types.ints.positive;
        default = 256;
        example = 32;
        description = "Most sessions of clients (of the older protocol) at the same time; the one idle longest gives way.";
      };
      sessionIdle = lib.mkOption {
        type = types.duration;
        default = "1h";
        example = "10m";
        description = "Sessions idle for so long end, at least 1s.";
      };
    };

    policy = lib.mkOption {
      type = lib.types.listOf (lib.types.submodule rule);
      default = [ ];
      example = [
        {
          tools = [ "files__write_*" ];
          action = "ask";
        }
        {
          tools = [ "git__*" ];
          keys = [ "ci" ];
          action = "deny";
        }
      ];
      description = "Who may call what; the first rule that names the tool and the key counts.";
    };
    defaultPolicy = lib.mkOption {
      type = action;
      default = "allow";
      example = "ask";
      description = "What happens to a call that no rule names.";
    };
    toolsets = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule toolset);
      default = { };
      example = {
        review = {
          tools = [ "git__*" ];
          mode = "list";
        };
      };
      description = "Named selections of tools, at `/mcp/NAME`; the name has letters, digits, `-`, `_` and `.` only.";
    };

    startTimeout = lib.mkOption {
      type = types.duration;
      default = "30s";
      example = "2m";
      description = "Longest wait until a tool server is ready, at least 100ms.";
    };
    listTimeout = lib.mkOption {
      type = types.duration;
      default = "15s";
      example = "1m";
      description = "Longest wait for the list of a server's tools, at least 100ms.";
    };
    callTimeout = lib.mkOption {
      type = types.duration;
      default = "1m";
      example = "10m";
      description = "Longest call of a tool whose server says nothing else, at least 100ms.";
    };
    circuitAfter = lib.mkOption {
      type = lib.types.ints.positive;
      default = 3;
      example = 5;
      description = "After so many failures in a row a server is left alone for `circuitOpen`.";
    };
    circuitOpen = lib.mkOption {
      type = types.duration;
      default = "10s";
      example = "1m";
      description = "How long a server is left alone then, at least 100ms. It doubles with each try that fails, up to 32 times.";
    };
    grace = lib.mkOption {
      type = types.duration;
      default = "1m";
      example = "10m";
      description = "How long the tools of a server that went away stay listed, while it is tried again.";
    };
    maxResult = lib.mkOption {
      type = types.size;
      default = "4 MiB";
      example = "16 MiB";
      description = "Largest result of a call, and largest message of a server. Results are held in memory.";
    };
  };

  config = lib.mkIf (cfg.enable && cfg.tools.enable) {
    services.lares.units = [ "lares-tools" ];

    systemd.services.lares-tools = service {
      name = "lares-tools";
      description = "Lares: one door to all MCP tools";
      guide = "tools.md";
      arguments = [
        "serve"
        "tools"
      ];
      addresses = if goesElsewhere then "any" else cfg.allowedAddresses;
      unit = {
        # The model is there before the daemon looks for it; where it cannot be fetched the daemon starts without.
        wants = [ "lares-setup.service" ] ++ fetches;
        after = [
          "lares-setup.service"
          "network.target"
        ]
        ++ lib.optional (
          cfg.coordinator.enable && search.embedding == "endpoint"
        ) "lares-coordinator.service"
        ++ fetches
        ++ wiring.storeUnits;
        restartTriggers = [ cfg.configFile ];
        inherit (cfg.tools) path;
      };
      serviceConfig = {
        WatchdogSec = "30s";

        # A server that memory ends is started again; the daemon and the other servers go on.
        OOMPolicy = "continue";
        TasksMax = cfg.tools.tasksMax;
      }
      // lib.optionalAttrs (cfg.tools.memoryMax != null) {
        MemoryMax = types.bytes cfg.tools.memoryMax;
      }
      // lib.optionalAttrs (cfg.tools.cpuQuota != null) {
        CPUQuota = cfg.tools.cpuQuota;
      }
      // confining.serviceConfig {
        readable =
          map confining.expand (
            ofServers (server: (server.read or [ ]) ++ lib.optional (server ? directory) server.directory)
            ++ discovery.client_files
          )
          ++ lib.optional (search.embedding == "in-process") (
            if wiring.embeddingModel == null then search.model else settings.llama.models_dir
          );
        writable = map confining.expand (ofServers (server: server.write or [ ]));
      };
    };
  };
}
