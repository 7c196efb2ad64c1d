{
  module.services.lares.ralph.enable = false;
  absent = [ "lares-ralph.service" ];
  units."lares.target".lacks = [ "lares-ralph" ];
}
