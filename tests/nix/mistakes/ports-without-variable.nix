{
  title = "Ports that the unit would not be told";
  module = {
    services.nginx.enable = true;
    services.lares = {
      models.coder.path = "/srv/models/coder.gguf";
      healer.units."nginx.service".ports = [ 18080 ];
    };
  };
  message = ''
    services.lares.healer.units."nginx.service".ports needs services.lares.healer.units."nginx.service".portVariable: the environment variable that tells the unit its port, such as "PORT".
  '';
}
