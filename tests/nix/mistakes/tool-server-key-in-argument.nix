{
  title = "A key in a command";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.servers.weather.command = [
      "/srv/bin/weather"
      "--api-key=the-key"
    ];
  };
  message = ''
    services.lares.tools.servers.weather: an argument of its command has a secret in it, and everybody can read it in the Nix store. Put it into a file and name that: services.lares.tools.servers.weather.envFiles.NAME.
  '';
}
