# Without the tools daemon there is no model for it either.
{
  module.services.lares.tools.enable = false;
  absent = [ "lares-tools.service" ];
  absentPrefix = [ "lares-model-" ];
  rules.lacks = [ "lares-tools" ];
}
