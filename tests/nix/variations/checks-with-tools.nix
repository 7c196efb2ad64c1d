{ pkgs }:
{
  module.services.lares.ralph.path = [ pkgs.gnumake ];
  units."lares-ralph.service".has = [
    "gnumake"
    "git"
    "bash"
    "coreutils"
  ];
  units."lares-coordinator.service".lacks = [ "gnumake" ];
}
