{
  title = "A reserve port that is taken";
  module = {
    services.nginx.enable = true;
    services.lares = {
      models.coder.path = "/srv/models/coder.gguf";
      healer.units."nginx.service" = {
        ports = [ 8080 ];
        portVariable = "PORT";
      };
    };
  };
  message = ''TCP port 8080 is taken by services.lares.models.coder.port and services.lares.healer.units."nginx.service".ports. Set services.lares.healer.units."nginx.service".ports to another one.'';
}
