# Tools are found by their words: nothing is fetched, and nothing computes.
{
  module.services.lares.tools.search.embedding = "none";
  absentPrefix = [ "lares-model-" ];
  settings.tools.search.embedding = "none";
  units."lares-tools.service".lacks = [ "lares-model-" ];
}
