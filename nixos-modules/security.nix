# Keys of clients. What the units may do is in hardening.nix, how secrets reach them in wiring.nix.
{ lib, ... }:
let
  types = import ./types.nix { inherit lib; };
in
{
  options.services.lares.gate = {
    keysRefresh = lib.mkOption {
      type = types.duration;
      default = "30s";
      example = "5m";
      description = ''
        How often the list of keys is read again, even if PostgreSQL announced no change. At most this long does a
        revoked key still work when the announcement was lost.
      '';
    };
    keysMaxAge = lib.mkOption {
      type = types.duration;
      default = "10m";
      example = "1h";
      description = ''
        How long the last list of keys stays good while PostgreSQL cannot be reached; after that every request gets 503.
        Not shorter than {option}`services.lares.gate.keysRefresh`.
      '';
    };
  };
}
