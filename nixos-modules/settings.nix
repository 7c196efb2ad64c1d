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
      };

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
