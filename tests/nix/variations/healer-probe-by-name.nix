# Which address a name has only the resolver knows.
{
  module = {
    systemd.services.app = { };
    services.lares.healer.units."app.service".probe.http = "https://app.example.org/health";
  };
  units."lares-healer.service".lacks = [ "IPAddressDeny" ];
}
