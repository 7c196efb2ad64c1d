# What every machine of these tests has.
{ lib, pkgs, ... }:
{
  services.lares.enable = lib.mkDefault true;
  # These machines have no network to fetch a model from.
  services.lares.tools.search.embedding = lib.mkDefault "none";
  environment.systemPackages = [
    pkgs.curl
    pkgs.git
    pkgs.jq
    # With a home it may read: git and the program look there for their configuration.
    (pkgs.writeShellScriptBin "as-lares" ''exec runuser -u lares -- env HOME=/var/lib/lares "$@"'')
  ];
  virtualisation = {
    cores = 2;
    memorySize = 2048;
  };
}
