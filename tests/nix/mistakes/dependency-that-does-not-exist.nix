{
  title = "A dependency that does not exist";
  module = {
    services.nginx.enable = true;
    services.lares = {
      models.coder.path = "/srv/models/coder.gguf";
      healer.units."nginx.service".dependencies = [ "redis.service" ];
    };
  };
  message = ''
    services.lares.healer.units."nginx.service" names redis.service, but there is no systemd.services."redis" on this system. Correct the name; if a package of systemd.packages brings the unit, write systemd.services."redis" = { };
  '';
}
