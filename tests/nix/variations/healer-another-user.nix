# The database belongs to a person: the healer stays a user of its own and takes that person's role.
{
  module = {
    users.users.alice.isNormalUser = true;
    services.lares = {
      user = "alice";
      group = "users";
    };
  };
  units."lares-healer.service".has = [
    "User=lares-healer"
    "postgresql:///alice?host=/run/postgresql&user=alice"
  ];
  config.services.postgresql.identMap = ''
    lares alice alice
    lares lares-healer alice
  '';
}
