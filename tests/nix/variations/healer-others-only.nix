# Only what a person names: nothing of Lares.
{
  module = {
    systemd.services.app = { };
    services.lares.healer = {
      includeLares = false;
      units."app.service" = { };
    };
  };
  settings.healer.units."app.service".keep_running = false;
  settingsMatch."healer.units" = "(?!.*(lares-|postgresql)).*";
  rules = {
    has = [ ''var units = ["app.service"];'' ];
    lacks = [ "lares-ralph" ];
  };
}
