{
  title = "A key in a URL";
  module.services.lares = {
    models.coder.path = "/srv/models/coder.gguf";
    tools.servers.weather.url = "https://mcp.example.org/mcp?api_key=the-key";
  };
  message = ''
    services.lares.tools.servers.weather: its url has a secret in it, and everybody can read it in the Nix store. Put it into a file and name that: services.lares.tools.servers.weather.headerFiles.Authorization.
  '';
}
