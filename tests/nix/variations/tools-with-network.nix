# A program that may use the network needs a unit that may.
{
  module.services.lares.tools.servers.fetch = {
    command = [ "mcp-server-fetch" ];
    network = "host";
  };
  settings.tools.servers.fetch.network = "host";
  units = {
    "lares-tools.service" = {
      has = [
        "PrivateUsers=true"
        "ProtectSystem=strict"
        "RestrictNamespaces=user mnt ipc net"
        "SystemCallFilter=landlock_restrict_self"
      ];
      lacks = [ "IPAddressDeny" ];
    };
    "lares-ralph.service".has = [ "IPAddressDeny=any" ];
  };
}
