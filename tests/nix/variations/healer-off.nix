# Without the healer nobody gets rights over units, and PostgreSQL knows no further user.
{
  module.services.lares.healer.enable = false;
  absentPrefix = [ "lares-healer" ];
  units."lares.target".lacks = [ "lares-healer" ];
  rules.lacks = [ "lares" ];
  config.services.postgresql.identMap = "";
}
