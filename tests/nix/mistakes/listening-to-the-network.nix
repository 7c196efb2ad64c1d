{
  title = "Listening to the network";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    coordinator.listen = "0.0.0.0:8092";
  };
  message = ''
    services.lares.coordinator.listen = "0.0.0.0:8092" is not on loopback. Keys travel in clear text, so only this machine is served:
    listen on 127.0.0.1 and put a proxy with TLS in front, for example services.nginx.virtualHosts.<name>.locations."/".proxyPass.
  '';
}
