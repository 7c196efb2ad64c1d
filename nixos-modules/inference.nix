# Local models: fetching their files, and one llama-server each.
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
  names = import ./names.nix { inherit lib; };
  service = import ./service.nix { inherit lib utils cfg; };
  wiring = import ./wiring.nix { inherit lib cfg; };

  settings = cfg.renderedSettings;
  modelsDir = settings.llama.models_dir;
  # systemd makes what is directly below /var/lib; other places are made by systemd-tmpfiles.
  inStateDirectories = builtins.match "/var/lib/[^/]+" modelsDir != null;

  # Those whose file may have to be fetched.
  fetched = lib.filter (name: settings.models.${name} ? source || settings.models.${name} ? url) (
    lib.attrNames cfg.models
  );

  # All whose file is fetched: the tools daemon computes with one that no server here has.
  allFetched =
    fetched
    ++ lib.subtractLists fetched (lib.optional (wiring.embeddingModel != null) wiring.embeddingModel);

  # What a file of tuned keys may set: what decides over speed and memory, and nothing about where the model is.
  tunable = [
    "contextSize"
    "slots"
    "kvType"
    "flashAttention"
    "lockMemory"
    "numa"
    "threads"
    "batchSize"
    "microBatchSize"
    "gpuLayers"
  ];

  # Home directories are hidden from the units; what is named in one is shown.
  hidden =
    path:
    lib.any (home: lib.hasPrefix home path) [
      "/home/"
      "/root/"
      "/run/user/"
    ];
  shown =
    list: path:
    lib.optionalAttrs (hidden path) {
      ProtectHome = "tmpfs";
      ${list} = [ path ];
    };

  devices = {
    cuda = [
      "char-nvidia"
      "char-nvidiactl"
      "char-nvidia-caps"
      "char-nvidia-frontend"
      "char-nvidia-uvm"
    ];
    rocm = [
      "char-drm"
      "char-kfd"
    ];
    # NVIDIA's Vulkan driver uses the devices of CUDA.
    vulkan = [ "char-drm" ] ++ devices.cuda;
  };

  # What a GPU's driver needs back.
  accelerated =
    name: accelerator:
    lib.optionalAttrs (accelerator != null) {
      PrivateDevices = false;
      DeviceAllow = map (device: "${device} rw") devices.${accelerator};
      SupplementaryGroups = [
        "render"
        "video"
      ];
      # Its groups have to be the machine's own.
      PrivateUsers = false;
      # Drivers compile kernels in memory.
      MemoryDenyWriteExecute = false;
      # … and keep what they compiled.
      CacheDirectory = "lares-llama-${name}";
    };

  model =
    { name, config, ... }:
    let
      tuned =
        if config.tuning == null then
          { }
        else if lib.hasSuffix ".json" (toString config.tuning) then
          lib.importJSON config.tuning
        else
          lib.importTOML config.tuning;
      unknown = lib.subtractLists (map names.snake tunable) (lib.attrNames tuned);
      checked =
        if unknown == [ ] then
          tuned
        else
          throw ''
            services.lares.models.${name}.tuning: ${toString config.tuning} sets ${lib.concatStringsSep ", " unknown}, which a tuning file cannot.
            It can set ${lib.concatMapStringsSep ", " names.snake tunable}.'';
    in
    {
      options = {
        source = lib.mkOption {
          type = lib.types.nullOr lib.types.str;
          default = null;
          example = "qwen2.5-coder-1.5b-instruct";
          description = ''
            Name in the model catalog, which `lares model list` prints. The file is fetched when the system starts,
            verified and kept in {option}`services.lares.llama.modelsDir`. Exactly one of `source`, `path` and `url` is
            set.
          '';
        };
        path = lib.mkOption {
          type = lib.types.nullOr lib.types.path;
          default = null;
          example = "/data/models/coder.gguf";
          description = ''
            A GGUF file that is already there, or a package that fetches one. Write a file of this machine as a string:
            a path literal copies it into the store. It has to be readable for everybody, as the server has a user of
            its own.
          '';
        };
        url = lib.mkOption {
          type = lib.types.nullOr lib.types.str;
          default = null;
          example = "https://example.org/coder-q4_k_m.gguf";
          description = "Where to fetch the GGUF file from when the system starts; needs `sha256`. Fetching resumes after an interruption.";
        };
        sha256 = lib.mkOption {
          type = lib.types.nullOr lib.types.str;
          default = null;
          example = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046";
          description = "SHA-256 of the file behind `url`, as 64 hexadecimal digits (what `sha256sum` prints). A file with another hash is never used.";
        };
        aliases = lib.mkOption {
          type = lib.types.listOf lib.types.str;
          default = [ ];
          example = [ "gpt-4o" ];
          description = "Other names that clients may use for it.";
        };
        port = lib.mkOption {
          type = lib.types.ints.between 1 65535;
          default = 8080 + lib.lists.findFirstIndex (other: other == name) 0 (lib.attrNames cfg.models);
          defaultText = lib.literalMD "8080, 8081, … in the order of the models' names";
          example = 8090;
          description = ''
            TCP port on 127.0.0.1. Clients use the coordinator's, so it matters only where another service has the same.
            llama-server asks for a key that only the coordinator and root have.
          '';
        };
        contextSize = lib.mkOption {
          type = lib.types.ints.positive;
          default = 8192;
          example = 16384;
          description = ''
            Tokens of context that each request gets, prompt and answer together. The KV cache takes memory in proportion
            to `contextSize` × `slots`, all of it from the start: for Qwen2.5-Coder 1.5B with `f16`, 28 KiB a token.
          '';
        };
        slots = lib.mkOption {
          type = lib.types.ints.positive;
          default = 1;
          example = 4;
          description = "Requests served at the same time; each has `contextSize` tokens, so memory grows with it. Further requests wait.";
        };
        kvType = lib.mkOption {
          type = lib.types.enum [
            "f32"
            "f16"
            "bf16"
            "q8_0"
            "q5_1"
            "q5_0"
            "q4_1"
            "q4_0"
          ];
          default = "f16";
          example = "q8_0";
          description = ''
            Type of the KV cache's numbers: bits per number, and so memory, in the name. The quantised ones (`q…`) need
            flash attention; on a CPU `q4_0` cost 20 % of the prompt speed of Qwen2.5-Coder 1.5B.
          '';
        };
        flashAttention = lib.mkOption {
          type = lib.types.enum [
            "on"
            "off"
            "auto"
          ];
          default = "on";
          example = "auto";
          description = "Flash attention: less memory, and needed by a quantised KV cache. `auto` leaves it to llama-server.";
        };
        lockMemory = lib.mkOption {
          type = lib.types.bool;
          default = false;
          example = true;
          description = "Whether to keep the weights in RAM, never swapped out (mlock). Other programs then cannot have that memory.";
        };
        numa = lib.mkOption {
          type = lib.types.nullOr (
            lib.types.enum [
              "distribute"
              "isolate"
              "numactl"
            ]
          );
          default = null;
          example = "distribute";
          description = "How to spread over NUMA nodes: evenly, only the node it starts on, or `numactl`'s map. `null`: not at all.";
        };
        threads = lib.mkOption {
          type = lib.types.nullOr lib.types.ints.positive;
          default = null;
          example = 4;
          description = "Threads that compute. `null`: as many as there are physical cores; more make it slower.";
        };
        batchSize = lib.mkOption {
          type = lib.types.ints.positive;
          default = 2048;
          example = 1024;
          description = "Most tokens of a prompt that are taken in at a time (logical batch).";
        };
        microBatchSize = lib.mkOption {
          type = lib.types.ints.positive;
          default = 128;
          example = 512;
          description = ''
            Tokens that are computed at a time (physical batch), at most `batchSize`. Its buffers take memory in
            proportion. 128 is fast on a CPU; GPUs like 512 and more.
          '';
        };
        gpuLayers = lib.mkOption {
          type = lib.types.nullOr lib.types.ints.unsigned;
          default = null;
          example = 99;
          description = ''
            Layers computed by the GPU, each taking its weights' size of GPU memory; a number above the model's layers
            means all. `null`: llama-server's choice. Needs `accelerator`.
          '';
        };
        embeddings = lib.mkOption {
          type = lib.types.bool;
          default = false;
          example = true;
          description = "Whether it serves embeddings, and only embeddings.";
        };

        accelerator = lib.mkOption {
          type = lib.types.nullOr (
            lib.types.enum [
              "cuda"
              "rocm"
              "vulkan"
            ]
          );
          default = null;
          example = "vulkan";
          description = ''
            The GPU interface that this model's server may use. Its unit then sees the GPU's devices and gives up the
            protections that drivers cannot live with. {option}`services.lares.llama.package` has to be built for it.
          '';
        };
        memoryMax = lib.mkOption {
          type = lib.types.nullOr types.size;
          default = null;
          example = "6 GiB";
          description = ''
            Memory at which the kernel ends this model's server (`MemoryMax=`), which is then started again. The mapped
            file counts while it is in use. `null`: no bound but the check at the start. All bounds together may not
            exceed {option}`services.lares.llama.memoryBudget`.
          '';
        };
        tuning = lib.mkOption {
          type = lib.types.nullOr lib.types.path;
          default = null;
          example = lib.literalExpression "./tuning/coder.toml";
          description = ''
            TOML or (by its name) JSON file with keys measured on this machine, such as `micro_batch_size = 256`. What is
            set here beside it wins over the file; the file wins over the defaults.
          '';
        };
      };

      # Stronger than a default of an option (1500), weaker than `mkDefault` (1000) and what a person sets (100).
      config = lib.genAttrs tunable (
        key: lib.mkIf (checked ? ${names.snake key}) (lib.mkOverride 1200 checked.${names.snake key})
      );
    };

  pull = name: {
    name = "lares-model-${name}";
    value = service {
      name = "lares-model-${name}";
      description = "Lares: file of the model ${name}";
      guide = "models.md";
      arguments = [
        "model"
        "pull"
        name
      ];
      as = "user";
      # The one unit that fetches, so the one that is not kept on this machine.
      addresses = "any";
      notifies = false;
      unit = {
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        restartTriggers = [
          (builtins.hashString "sha256" (
            builtins.toJSON {
              inherit modelsDir;
              file = builtins.intersectAttrs {
                source = null;
                url = null;
                sha256 = null;
              } (settings.models.${name} or { source = name; });
            }
          ))
        ];
      };
      serviceConfig = {
        RestartSec = "2s";
        RestartMaxDelaySec = "5min";
        # Servers run as users of their own and read what is fetched here.
        UMask = "0022";
        TimeoutStartSec = "infinity";
        # It writes one large file once: everybody else comes first.
        IOSchedulingClass = "idle";
        Nice = 10;
      }
      // (
        if inStateDirectories then
          {
            StateDirectory = baseNameOf modelsDir;
            StateDirectoryMode = "0755";
          }
        else
          { ReadWritePaths = lib.optional (!hidden modelsDir) modelsDir; }
      )
      // shown "BindPaths" modelsDir;
    };
  };

  serve = name: {
    name = "lares-llama-${name}";
    value =
      let
        rendered = settings.models.${name};
        inherit (cfg.models.${name}) accelerator memoryMax;
        fetches = lib.optional (lib.elem name fetched) "lares-model-${name}.service";
      in
      service {
        name = "lares-llama-${name}";
        description = "Lares: llama-server of the model ${name}";
        guide = "models.md";
        arguments = [
          "serve"
          "llama"
          name
        ];
        as = "nobody";
        unit = {
          wants = [ "lares-setup.service" ] ++ fetches;
          after = [
            "lares-setup.service"
            "network.target"
          ]
          ++ fetches;
          # Loading takes long, so only what this server reads restarts it, not the whole file.
          restartTriggers = [
            (builtins.hashString "sha256" (
              builtins.toJSON {
                inherit rendered;
                inherit (settings) llama log;
              }
            ))
          ];
          environment = {
            # OpenMP's threads spin while they wait for each other; beside any other busy process, and there are some,
            # they then mostly wait for one that has no core.
            OMP_WAIT_POLICY = "passive";
          }
          // lib.optionalAttrs (accelerator != null) {
            XDG_CACHE_HOME = "%C/lares-llama-${name}";
            CUDA_CACHE_PATH = "%C/lares-llama-${name}/cuda";
          };
        };
        serviceConfig = {
          # The key that the server asks for; the coordinator reads the same file.
          LoadCredential = [ "llama.key:${cfg.stateDir}/keys/llama.key" ];
          # What may be left of the memory is in /proc/meminfo.
          ProcSubset = "all";
          WatchdogSec = "60s";
          # Reading a large model from a slow disk takes minutes.
          TimeoutStartSec = "15min";
          # A server is back in seconds and loses nothing, so when memory ends it goes before the database.
          OOMScoreAdjust = 300;
        }
        // lib.optionalAttrs (memoryMax != null) {
          MemoryMax = types.bytes memoryMax;
        }
        // lib.optionalAttrs (rendered.lock_memory) {
          LimitMEMLOCK = "infinity";
        }
        // shown "BindReadOnlyPaths" (rendered.path or modelsDir)
        // accelerated name accelerator;
      };
  };
in
{
  options.services.lares = {
    llama = {
      package = lib.mkOption {
        type = lib.types.package;
        default = pkgs.llama-cpp;
        defaultText = lib.literalExpression "pkgs.llama-cpp";
        example = lib.literalExpression "pkgs.llama-cpp.override { cudaSupport = true; }";
        description = ''
          The llama.cpp that has `llama-server`. For a GPU it is built with that GPU's support, which the public binary
          cache may not have and which then takes long to compile.
        '';
      };
      server = lib.mkOption {
        type = lib.types.nullOr lib.types.str;
        default = lib.getExe' cfg.llama.package "llama-server";
        defaultText = lib.literalExpression ''lib.getExe' config.services.lares.llama.package "llama-server"'';
        example = "/opt/llama.cpp/bin/llama-server";
        description = "The `llama-server` program. Which flags it understands is looked up when a model starts.";
      };
      modelsDir = lib.mkOption {
        type = types.hostPath;
        default = "/var/lib/lares-models";
        example = "/data/models";
        description = ''
          Where fetched models are kept, named by hash; readable for everybody. They take what their files take (0.5 to
          5 GiB for models of 0.5 to 7 billion parameters) and are not removed when a model is taken out of the
          configuration.
        '';
      };
      enginesDir = lib.mkOption {
        type = lib.types.nullOr types.hostPath;
        default = null;
        example = "/var/lib/lares/engines";
        description = ''
          Where `lares engine install` keeps a `llama-server` that it built. On NixOS
          {option}`services.lares.llama.package` has one, so nothing is there. `null`: `engines` in the state directory.
        '';
      };
      memoryBudget = lib.mkOption {
        type = lib.types.nullOr types.size;
        default = null;
        example = "12 GiB";
        description = ''
          Memory that all local models may take together. A model that would not fit beside the others, by its weights
          and its KV cache, does not start and says so. `null`: what the machine has available when a model starts.
        '';
      };
    };

    models = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule model);
      default = { };
      example = lib.literalExpression ''
        {
          coder = {
            source = "qwen2.5-coder-1.5b-instruct";
            contextSize = 8192;
            slots = 2;
          };
        }
      '';
      description = ''
        The local models, one `llama-server` each; the key is the name that clients ask for, of letters, digits, `-`,
        `_` and `.`. For each there is a unit `lares-llama-NAME`, and `lares-model-NAME` when its file is fetched.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    services.lares.units =
      map (name: "lares-model-${name}") allFetched
      ++ map (name: "lares-llama-${name}") (lib.attrNames cfg.models);

    systemd.services = lib.listToAttrs (map pull allFetched ++ map serve (lib.attrNames cfg.models));

    systemd.tmpfiles.settings = lib.mkIf (!inStateDirectories && allFetched != [ ]) {
      "10-lares-models".${modelsDir}.d = {
        inherit (cfg) user group;
        mode = "0755";
      };
    };
  };
}
