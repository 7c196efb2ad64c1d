# Option names are camelCase, keys of the configuration file are snake_case; this is the only place that translates.
{ lib }:
rec {
  # "maxIterations" -> "max_iterations"
  snake = lib.stringAsChars (
    char: if builtins.match "[A-Z]" char != null then "_${lib.toLower char}" else char
  );

  # The options of one section as keys of the file, without those that only NixOS knows.
  section =
    onlyHere: options:
    lib.mapAttrs' (name: lib.nameValuePair (snake name)) (removeAttrs options onlyHere);
}
