# Evaluates many small systems in one call and says, as data, what each leads to.
#
# nixpkgs, nixpkgsLib: see nixos.nix. names: which variations; null for all of them. snippets: files
# of modules from the guide.
{
  nixpkgs,
  nixpkgsLib ? null,
  names ? null,
  snippets ? [ ],
}:
let
  bed = arguments: import ./nixos.nix ({ inherit nixpkgs nixpkgsLib; } // arguments);
  shared = bed { };
  inherit (shared) lib pkgs;

  module = ../../nixos-modules;
  base = {
    services.lares = {
      enable = lib.mkDefault true;
      models.coder.path = lib.mkDefault "/srv/models/coder.gguf";
    };
  };
  bare.services.lares.enable = lib.mkDefault true;

  nixFiles =
    directory:
    lib.mapAttrs' (file: _: lib.nameValuePair (lib.removeSuffix ".nix" file) (directory + "/${file}")) (
      lib.filterAttrs (file: _: lib.hasSuffix ".nix" file) (builtins.readDir directory)
    );
  load =
    file:
    let
      value = import file;
    in
    if lib.isFunction value then value { inherit pkgs; } else value;

  variationFiles = nixFiles ./variations;
  wanted = if names == null then lib.attrNames variationFiles else names;

  # Data without what JSON cannot hold: nulls are keys that are not set, derivations are their path.
  data =
    value:
    if lib.isDerivation value then
      value.outPath
    else if lib.isAttrs value then
      lib.mapAttrs (_: data) (lib.filterAttrs (_: inner: inner != null) value)
    else if lib.isList value then
      map data value
    else if lib.isFunction value then
      "<function>"
    else if builtins.isPath value then
      toString value
    else
      value;

  # The part of the configuration that an expectation names.
  like =
    pattern: value:
    if lib.isAttrs pattern && lib.isAttrs value && !(lib.isDerivation value) then
      if pattern == { } then
        data value
      else
        lib.mapAttrs (
          name: inner: if value ? ${name} then like inner value.${name} else "<not set>"
        ) pattern
    else
      data value;

  result =
    config: expected:
    let
      units = lib.filterAttrs (name: _: lib.hasPrefix "lares" name) config.systemd.units;
    in
    {
      assertions = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
      inherit (config) warnings;
      # A target's members are links beside it, not lines in it.
      units = lib.mapAttrs (
        _: unit:
        unit.text
        + lib.concatMapStrings (target: "\n# WantedBy=${target}") unit.wantedBy
        + lib.concatMapStrings (target: "\n# RequiredBy=${target}") unit.requiredBy
        + "\n"
      ) units;
      settings =
        if config.services.lares.enable then data config.services.lares.renderedSettings else { };
      # What polkit is told, all of it.
      rules = config.security.polkit.extraConfig;
      etc = lib.attrNames (lib.filterAttrs (name: _: lib.hasPrefix "lares" name) config.environment.etc);
      # Without expectations the whole configuration would be the answer.
      config = if expected == { } then { } else like expected config;
    };

  variation =
    name:
    let
      spec = load variationFiles.${name};
      evaluated = bed {
        inherit pkgs;
        modules = [
          module
          (if spec.bare or false then bare else base)
          (spec.module or { })
        ];
      };
    in
    result evaluated.system.config (spec.config or { })
    // {
      expected = lib.recursiveUpdate {
        units = { };
        absent = [ ];
        absentPrefix = [ ];
        settings = { };
        settingsMatch = { };
        rules = { };
        config = { };
      } (removeAttrs spec [ "module" ]);
    };

  hostFiles = {
    workstation = ../../hosts/workstation;
    gpu = ../../hosts/gpu;
    cluster-control = ../../hosts/cluster/control;
    cluster-worker = ../../hosts/cluster/worker;
  };

  mistake =
    name:
    bed {
      inherit pkgs;
      modules = [
        module
        { services.lares.enable = lib.mkDefault true; }
        (load (./mistakes + "/${name}.nix")).module
      ];
    };

  # Every option below services.lares, with its default as data where it is data.
  options =
    let
      evaluated = bed {
        inherit pkgs;
        modules = [ module ];
      };
      plain =
        value:
        if
          value == null || lib.isString value || lib.isBool value || lib.isInt value || lib.isFloat value
        then
          value
        else if lib.isDerivation value then
          "<derivation>"
        else if lib.isAttrs value then
          lib.mapAttrs (_: plain) value
        else if lib.isList value then
          map plain value
        else if builtins.isPath value then
          toString value
        else
          "<function>";
      # The values of an enumeration, or of one that may also be null.
      choices =
        type:
        if type.name == "enum" then
          type.functor.payload.values or type.functor.payload
        else if type.name == "nullOr" then
          choices type.nestedTypes.elemType
        else
          null;
      describe =
        option:
        let
          sub = option.type.getSubOptions option.loc;
          nested = lib.optionals (sub != { }) (
            lib.concatMap describe (lib.collect lib.isOption (removeAttrs sub [ "_module" ]))
          );
          rendered = lib.head (lib.optionAttrSetToDocList { inherit option; });
        in
        [
          {
            inherit (option) loc;
            type = option.type.description;
            choices = choices option.type;
            description =
              let
                given = option.description or "";
              in
              given.text or given;
            internal = option.internal or false;
            hidden = lib.elem (option.visible or true) [
              false
              "transparent"
            ];
            readOnly = option.readOnly or false;
            hasDefault = option ? default;
            default = if option ? default && !(option ? defaultText) then plain option.default else null;
            plainDefault = option ? default && !(option ? defaultText);
            defaultText = rendered.default.text or null;
            defaultIsProse = rendered.default._type or null == "literalMD";
            exampleText = rendered.example.text or null;
          }
        ]
        ++ nested;
    in
    lib.concatMap describe (lib.collect lib.isOption evaluated.system.options.services.lares);
in
{
  inherit lib pkgs options;
  libRelease = lib.trivial.release;
  variationNames = lib.attrNames variationFiles;
  variations = lib.genAttrs wanted variation;
  # What the guide shows is taken as it is, on a machine that has what it speaks of.
  snippets = map (
    file:
    result
      (bed {
        inherit pkgs;
        modules = [
          module
          bare
          file
          (
            { lib, ... }:
            {
              options.age.secrets = lib.mkOption {
                type = lib.types.attrsOf (lib.types.submodule { freeformType = lib.types.anything; });
              };
              options.sops = lib.mkOption { type = lib.types.anything; };
              config.age.secrets.cloud.path = "/run/agenix/cloud";
              config.services.lares.models.default.path = "/srv/models/default.gguf";
            }
          )
        ];
      }).system.config
      { }
  ) snippets;

  hosts = lib.mapAttrs (
    _: file:
    result
      (bed {
        modules = [
          module
          file
        ];
      }).system.config
      { }
  ) hostFiles;
  hostSystems = lib.mapAttrs (
    _: file:
    (bed {
      modules = [
        module
        file
      ];
    }).system.config.system.build.toplevel.drvPath
  ) hostFiles;
  mistakes = lib.mapAttrs (name: _: (mistake name).system.config.system.build.toplevel.drvPath) (
    nixFiles ./mistakes
  );
  mistakeTexts = lib.mapAttrs (_: file: removeAttrs (load file) [ "module" ]) (nixFiles ./mistakes);
}
