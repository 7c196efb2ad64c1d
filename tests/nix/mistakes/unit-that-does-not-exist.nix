{
  title = "Healing a unit that does not exist";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    healer.units."ap.service" = { };
  };
  message = ''
    services.lares.healer.units."ap.service": there is no systemd.services."ap" on this system. Correct the name; if a package of systemd.packages brings the unit, write systemd.services."ap" = { };
  '';
}
