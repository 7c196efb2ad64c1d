{
  module.services.lares.agents.builtin = {
    model = "coder";
    editFormat = "search-replace";
    maxPrompt = "8 KiB";
    maxAnswerTokens = 512;
    answerTimeout = "3m";
  };
  settings.agents.builtin = {
    model = "coder";
    edit_format = "search-replace";
    max_prompt = "8 KiB";
    max_answer_tokens = 512;
    answer_timeout = "3m";
  };
}
