{
  title = "The healer as its own patient";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    healer.units."lares-healer.service" = { };
  };
  message = ''services.lares.healer.units."lares-healer.service": the healer cannot heal itself; systemd brings it back. Take it out.'';
}
