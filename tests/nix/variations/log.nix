{
  module.services.lares.log = {
    level = "info,lares_ralph=debug";
    format = "json";
  };
  settings.log = {
    level = "info,lares_ralph=debug";
    format = "json";
  };
}
