{
  module.services.lares.gate = {
    keysRefresh = "5s";
    keysMaxAge = "1m";
  };
  settings.gate = {
    keys_refresh = "5s";
    keys_max_age = "1m";
  };
}
