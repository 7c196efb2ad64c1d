{
  title = "Two models on one port";
  module.services.lares.models = {
    coder = {
      path = "/srv/models/coder.gguf";
      port = 8085;
    };
    embed = {
      path = "/srv/models/embed.gguf";
      port = 8085;
    };
  };
  message = "TCP port 8085 is taken by services.lares.models.coder.port and services.lares.models.embed.port. Set services.lares.models.embed.port to another one.";
}
