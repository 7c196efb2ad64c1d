{
  title = "One name for two models";
  module.services.lares.models = {
    coder.path = "/srv/models/coder.gguf";
    big = {
      path = "/srv/models/big.gguf";
      aliases = [ "coder" ];
    };
  };
  message = ''
    services.lares.models.big.aliases: "coder" is a name of services.lares.models.coder and services.lares.models.big; keep it at one.
  '';
}
