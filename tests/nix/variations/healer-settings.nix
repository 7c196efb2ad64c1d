# A unit that only `settings` names is healed like the others.
{
  module = {
    systemd.services.app = { };
    services.lares.settings.healer.units."app.service".probe.tcp = "127.0.0.1:9";
  };
  settings.healer.units."app.service".probe.tcp = "127.0.0.1:9";
}
