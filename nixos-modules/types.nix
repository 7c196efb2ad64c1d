# The types that the configuration knows and NixOS does not: sizes, durations, secrets.
{ lib }:
let
  factors = {
    "" = 1;
    b = 1;
    k = 1024;
    kib = 1024;
    m = 1024 * 1024;
    mib = 1024 * 1024;
    g = 1024 * 1024 * 1024;
    gib = 1024 * 1024 * 1024;
    t = 1024 * 1024 * 1024 * 1024;
    tib = 1024 * 1024 * 1024 * 1024;
    kb = 1000;
    mb = 1000 * 1000;
    gb = 1000 * 1000 * 1000;
    tb = 1000 * 1000 * 1000 * 1000;
  };
  sizeText = "([0-9]+) *([kKmMgGtT]?[iI]?[bB]?)";
  durationText = "([0-9]+(\\.[0-9]+)? *(h|hr|hrs|hour|hours|m|min|mins|minute|minutes|s|sec|secs|second|seconds|ms|msec|millis|milliseconds?)[, ]*)+";
in
{
  # What the daemons read as a size: a number of bytes, or a text with a binary or decimal unit.
  size = lib.types.either lib.types.ints.unsigned (lib.types.strMatching sizeText) // {
    description = ''size such as "512 MiB" or "8 GiB", or a number of bytes'';
    descriptionClass = "conjunction";
  };

  duration = lib.types.strMatching durationText // {
    description = ''duration with its unit, such as "500ms", "30s", "5m" or "1h 30m"'';
    descriptionClass = "noun";
  };

  # A secret is read when its unit starts. A path literal would be copied into the store, where everybody can read it.
  secretFile = lib.types.externalPath // {
    description = ''path of a secret outside the Nix store, written as a string such as "/run/secrets/name"'';
    descriptionClass = "noun";
  };

  # A path on the machine that runs the daemons, in the form that systemd's path lists take without quoting.
  hostPath = lib.types.strMatching "/[^[:space:]:%\"'\\\\]*" // {
    description = "absolute path as a string, without spaces, colons, quotes, backslashes and percent signs";
    descriptionClass = "noun";
  };

  # Number of bytes of a `size`.
  bytes =
    size:
    if builtins.isInt size then
      size
    else
      let
        parts = builtins.match sizeText size;
        unit = lib.toLower (builtins.elemAt parts 1);
      in
      if parts == null || !(factors ? ${unit}) then
        throw ''"${size}" is not a size such as "512 MiB", "8 GiB" or a number of bytes''
      else
        # Leading zeros would read as an octal number.
        lib.toIntBase10 (builtins.elemAt parts 0) * factors.${unit};
}
