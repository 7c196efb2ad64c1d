# A unit that listens on another address of this machine: the healer reaches that one and no further.
{
  module = {
    systemd.services.app = { };
    systemd.services.web = { };
    services.lares.healer.units = {
      "app.service".probe.http = "http://10.77.0.1:8080/health";
      "web.service".probe.tcp = "[fd00::1]:443";
    };
  };
  units."lares-healer.service".has = [
    "IPAddressDeny=any"
    "IPAddressAllow=10.77.0.1"
    "IPAddressAllow=fd00::1"
  ];
}
