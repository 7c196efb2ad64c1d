# The options of `services.lares`, evaluated from the modules alone.
#
# lib is enough for `json`, the list that documentation is made of, as JSON text; `package` and `markdown` also need pkgs:
#   nix-instantiate --eval --json --expr '(import ./nix/options-doc.nix { lib = import <nixpkgs/lib>; }).json'
{
  lib,
  pkgs ? null,
}:
let
  # Enough of a package set for declarations; defaults that are packages are shown as text.
  declarationsOnly = {
    formats.toml = _: {
      type =
        let
          value =
            lib.types.oneOf [
              lib.types.bool
              lib.types.int
              lib.types.float
              lib.types.str
              lib.types.path
              (lib.types.attrsOf value)
              (lib.types.listOf value)
            ]
            // {
              description = "TOML value";
            };
        in
        value;
    };
  };

  evaluated = lib.evalModules {
    modules = [
      ../nixos-modules
      {
        # What the modules set elsewhere (units, users, PostgreSQL) is not declared here and not asked for.
        _module.check = false;
        _module.args = {
          pkgs = if pkgs == null then declarationsOnly else pkgs;
          utils = { };
        };
      }
    ];
  };
  options = { inherit (evaluated.options.services) lares; };

  root = toString ../.;
  # Where an option is declared, from the root of the repository, so that no path of a machine gets into the text.
  relative =
    option:
    option
    // {
      declarations = map (file: lib.removePrefix "${root}/" (toString file)) option.declarations;
    };

  listed = map relative (
    lib.filter (option: option.visible && !option.internal) (lib.optionAttrSetToDocList options)
  );

  doc = pkgs.nixosOptionsDoc {
    inherit options;
    transformOptions = relative;
  };
in
{
  json = builtins.toJSON listed;
  inherit listed;
  markdown = doc.optionsCommonMark;
  package = pkgs.runCommand "lares-options" { } ''
    mkdir -p $out/share/doc/lares
    cp ${doc.optionsCommonMark} $out/share/doc/lares/options.md
    cp ${doc.optionsJSON}/share/doc/nixos/options.json $out/share/doc/lares/options.json
  '';
}
