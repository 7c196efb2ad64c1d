{
  title = "Two probes of one unit";
  module = {
    services.nginx.enable = true;
    services.lares = {
      models.coder.path = "/srv/models/coder.gguf";
      healer.units."nginx.service".probe = {
        http = "http://127.0.0.1/";
        tcp = "127.0.0.1:80";
      };
    };
  };
  message = ''services.lares.healer.units."nginx.service".probe sets http and tcp; keep one of them.'';
}
