{
  title = "A unit without its suffix";
  module = {
    services.nginx.enable = true;
    services.lares = {
      models.coder.path = "/srv/models/coder.gguf";
      healer.units.nginx = { };
    };
  };
  message = ''
    services.lares.healer.units."nginx" is not the full name of a service. Write services.lares.healer.units."nginx.service".
  '';
}
