# The configuration file: what the typed options say, what `settings` says over it, and the check of the result.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.lares;
  names = import ./names.nix { inherit lib; };
  toml = pkgs.formats.toml { };

  # TOML knows no null: a key that is not set is left out.
  present =
    value:
    if lib.isAttrs value && !lib.isDerivation value then
      lib.mapAttrs (_: present) (lib.filterAttrs (_: inner: inner != null) value)
    else
      value;

  # Weaker than what anybody writes into `settings`.
  weak = lib.mapAttrsRecursive (_: lib.mkDefault);

  # A package, such as one that fetches a model's file, stands for its path.
  asPath = file: if file == null then null else "${file}";

  typed = {
    state_dir = cfg.stateDir;
    log = names.section [ ] cfg.log;
    store = names.section [ ] cfg.store // {
      vectors = names.section [ ] cfg.store.vectors;
      cache = names.section [ ] cfg.store.cache;
    };
    gate = names.section [ ] cfg.gate;
    llama = names.section [ "package" ] cfg.llama;
    models = lib.mapAttrs (
      _: model:
      names.section [
        "accelerator"
        "memoryMax"
        "tuning"
      ] model
      // {
        path = asPath model.path;
      }
    ) cfg.models;
    coordinator = names.section [ "enable" ] cfg.coordinator // {
      upstreams = lib.mapAttrs (_: names.section [ ]) cfg.coordinator.upstreams;
    };
    agents = {
      builtin = names.section [ ] cfg.agents.builtin;
      sandbox = names.section [ ] cfg.agents.sandbox;
    };
    tools =
      names.section [
        "cpuQuota"
        "enable"
        "memoryMax"
        "path"
        "tasksMax"
      ] cfg.tools
      // {
        discovery = names.section [ ] cfg.tools.discovery;
        search = names.section [ ] cfg.tools.search;
        gateway = names.section [ ] cfg.tools.gateway;
        servers = lib.mapAttrs (_: names.section [ ]) cfg.tools.servers;
        toolsets = lib.mapAttrs (_: names.section [ ]) cfg.tools.toolsets;
      };
    ralph = names.section [
      "enable"
      "path"
      "repositories"
    ] cfg.ralph;
    healer =
      names.section [
        "enable"
        "includeLares"
        "polkitRule"
      ] cfg.healer
      // {
        patterns_file = asPath cfg.healer.patternsFile;
        units = lib.mapAttrs (
          _: unit: names.section [ "enable" ] unit // { probe = names.section [ ] unit.probe; }
        ) (lib.filterAttrs (_: unit: unit.enable) cfg.healer.units);
      };
  };

  merged = present cfg.settings;
  upstreams = merged.coordinator.upstreams or { };
  # One that is not used is handed nothing.
  toolServers = lib.filterAttrs (_: server: server.enabled or true) (merged.tools.servers or { });
  toolSearch = merged.tools.search or { };

  # Where the secrets of a tool server are, by the names of their credentials. A server has no `__` in its name and no `_`
  # at the end, so no two are the same.
  serverSecrets =
    server: settings:
    lib.concatMapAttrs
      (
        kind: key:
        lib.mapAttrs' (name: lib.nameValuePair "${kind}-${server}__${name}") (settings.${key} or { })
      )
      {
        env = "env_files";
        header = "header_files";
      };
  handedOver = credential: "/run/credentials/lares-tools.service/${credential}";

  unchecked = toml.generate "lares-config-unchecked.toml" cfg.renderedSettings;
in
{
  options.services.lares = {
    settings = lib.mkOption {
      type = lib.types.submodule { freeformType = toml.type; };
      default = { };
      example = {
        ralph.max_iterations = 5;
      };
      description = ''
        The configuration file itself, `/etc/lares/config.toml`, with its own names (`ralph.max_iterations`; all of them
        are printed by `lares config schema`). The typed options feed it; what is set here wins over them. A key or a
        value that the program would refuse fails the build of the system. Everybody can read the file: secrets go into
        the `…File` options.
      '';
    };

    renderedSettings = lib.mkOption {
      type = lib.types.attrsOf lib.types.anything;
      internal = true;
      readOnly = true;
      description = "What `/etc/lares/config.toml` says, before it is checked.";
    };

    configFile = lib.mkOption {
      type = lib.types.package;
      internal = true;
      readOnly = true;
      description = "The checked configuration file.";
    };

    upstreamKeys = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      internal = true;
      readOnly = true;
      description = "Where the API keys of upstreams are, before systemd hands them over.";
    };

    toolSecrets = lib.mkOption {
      type = lib.types.attrsOf lib.types.str;
      internal = true;
      readOnly = true;
      description = "Where secrets of tool servers are, before systemd hands them over, by the names of their credentials.";
    };

    units = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      internal = true;
      default = [ ];
      description = "Services that belong to `lares.target`, without their suffix.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.lares = {
      settings = weak (present typed);

      renderedSettings = lib.recursiveUpdate merged {
        coordinator.upstreams = lib.mapAttrs (name: _: {
          api_key_file = "/run/credentials/lares-coordinator.service/upstream-${name}";
        }) cfg.upstreamKeys;
        tools = lib.optionalAttrs cfg.tools.enable {
          servers = lib.mapAttrs (server: secrets: {
            env_files = lib.mapAttrs (name: _: handedOver "env-${server}__${name}") (secrets.env_files or { });
            header_files = lib.mapAttrs (name: _: handedOver "header-${server}__${name}") (
              secrets.header_files or { }
            );
          }) toolServers;
          search = lib.optionalAttrs (toolSearch ? api_key_file) {
            api_key_file = handedOver "search-api-key";
          };
        };
      };

      toolSecrets =
        lib.concatMapAttrs serverSecrets toolServers
        // lib.optionalAttrs (toolSearch ? api_key_file) { search-api-key = toolSearch.api_key_file; };

      upstreamKeys = lib.mapAttrs (_: upstream: "${upstream.api_key_file}") (
        lib.filterAttrs (_: upstream: upstream ? api_key_file) upstreams
      );

      configFile =
        if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
          # A mistake fails here, when the system is built, and not when it boots.
          pkgs.runCommand "lares-config.toml" { nativeBuildInputs = [ cfg.package ]; } ''
            lares config check ${unchecked}
            cp ${unchecked} $out
          ''
        else
          unchecked;
    };

    environment.etc."lares/config.toml".source = cfg.configFile;
  };
}
