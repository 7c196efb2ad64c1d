# A tool server on another machine, with a secret: the tools daemon may leave this one, and nobody else.
{
  module.services.lares.tools.servers.weather = {
    url = "https://mcp.example.org/mcp";
    headerFiles.Authorization = "/run/secrets/weather";
  };
  settings.tools.servers.weather = {
    url = "https://mcp.example.org/mcp";
    header_files.Authorization = "/run/credentials/lares-tools.service/header-weather__Authorization";
  };
  units = {
    "lares-tools.service" = {
      has = [ "LoadCredential=header-weather__Authorization:/run/secrets/weather" ];
      lacks = [ "IPAddressDeny" ];
    };
    "lares-coordinator.service".has = [ "IPAddressDeny=any" ];
    "lares-ralph.service".has = [ "IPAddressDeny=any" ];
  };
}
