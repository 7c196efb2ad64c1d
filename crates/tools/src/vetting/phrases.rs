//! What a text asks for: short patterns over marked words.
//!
//! The lexicon gives words their marks, a phrase is a sequence of marks with at most so many words between. Matching
//! walks each sentence once a phrase, so the time is linear in the text.

use std::ops::Range;
use std::sync::LazyLock;

use regex::Regex;

use super::reading::{Marks, Reading, Word, mark, read};
use super::texts::{Role, Text};
use super::{Findings, Rule, Severity};
use Rule::{
    AsksForContext, EncodedPayload, Exfiltration, ForcedAnswer, NoConsent, Override, Persona, Pressure, PrivateData,
    Secrecy, Steering,
};
use Severity::{Danger, Info, Warning};

/// Marks and their words: `word`, `beginning*`, `several+words`. Accents are folded away before.
pub(super) const LEXICON: &[(&str, &str)] = &[
    (
        "not",
        "not rather+than never dont doesnt didnt cannot cant mustnt shouldnt wont without avoid refrain nor neither no none nicht nie niemals keinesfalls kein keine nunca jamas jamais ne nao non mai niet nooit nie не никогда без asla hicbir",
    ),
    ("without", "without ohne sin sans sem senza zonder без"),
    (
        "tell",
        "tell telling told inform* notify notified notifying mention* alert alerting disclose disclosing confess announce* acknowledg* sag sage sagen erzahl* informier* verrat* erwahn* mitteil* digas diga dire decir* inform* mencion* reveles revele* dis dites disez prevenir avert* dici dire avvis* vertel* zeg сообща* сообщи* говори* рассказыва* упомина* уведомля* soyleme* powiedz* mow informuj*",
    ),
    (
        "show",
        "show showing display displaying expose exposing reveal* discuss* describe surface report reporting present explain* bother zeig* muestres mostrar montre* bring hint let",
    ),
    (
        "user",
        "user user's users human humans person people operator customer anyone anybody someone nobody them benutzer* nutzer* anwender* usuario* utilisateur* utente gebruiker* kullanici* uzytkownik* пользовател* developer owner victim principal",
    ),
    (
        "secretly",
        "silently secretly covertly quietly stealthily discreetly unnoticed surreptitiously inconspicuously heimlich unbemerkt stillschweigend secretamente discretement silenciosamente тайно незаметно скрытно segretamente behind+the+scenes",
    ),
    ("keep", "keep keeping stay stays remain remains treat leave leaving make hide hiding conceal*"),
    (
        "hidden",
        "secret hidden confidential invisible undisclosed unmentioned unseen internal private out geheim verborgen secreto oculto cache",
    ),
    ("hide", "hide hiding conceal* verberg* verheimlich* oculta* cacher cache"),
    ("from", "from vor dem del au"),
    (
        "know",
        "know aware notice noticing see seeing told informed notified consent* knowledge knowing permission awareness alerted suspicious suspect realiz* approval wissen zustimmung conocimiento saber consentimiento savoir consentement merken ведома",
    ),
    ("modal", "should must need needs shall may can cannot mustnt shouldnt neednt darf soll debe doit has"),
    ("need", "need needs have required necessary"),
    (
        "ignore",
        "ignor* disregard* forget override overrule bypass* discard* neglect* circumvent* abandon dismiss drop skip vergiss missacht* olvida* descart* oubli* negligez faites dimentic* vergeet negeer esquec* desconsider* забудь* игнорир* проигнорир* пренебре* zignoruj* unut* gormezden set+aside pay+no+attention+to stop+following cease+following do+not+follow dont+follow no+longer+follow no+longer+apply",
    ),
    (
        "prior",
        "previous previously prior preceding earlier above former foregoing your yours system initial existing vorherig* vorig* bisherig* fruher* obig* anterior* previa* previo* precedent* precedente* precedenti vorige eerdere предыдущ* прежн* ранее poprzedni* onceki safety security ethical",
    ),
    (
        "all",
        "all any every everything each whole entire other todas todos toutes tous alle tutte tutti todas все всё wszystkie tum",
    ),
    (
        "orders",
        "instruction* instruct* prompt prompts rule rules guideline* directive* guardrail* constraint* safeguard* training policies anweisung* vorgaben regeln instruccion* instrucao* instrucoes consigne* regles reglas istruzioni instructies инструкци* указани* правил* instrukcj* talimat* restrictions limitations programming protocols",
    ),
    (
        "orders2",
        "instruction* directive* guardrail* anweisung* instruccion* instrucoes consigne* istruzioni instructies инструкци* указани* instrukcj* talimat* system+prompt* safety+rule* safety+guideline* content+polic* earlier+prompt*",
    ),
    ("everything", "everything anything alles todo tout tutto всё все what whatever"),
    ("said", "said told above before earlier previously learned asked wanted requested precedes came prior"),
    (
        "request",
        "request* question query queries wish* intent* intention* instruction* preference* asked wants goal original task objection* concern*",
    ),
    (
        "precede",
        "precedence supersede* override* overrid* priority outrank* trump* prevail* replace* replaces vorrang prioridad priorite",
    ),
    ("over", "over above than to before"),
    (
        "sysprompt",
        "system+prompt* system+message* system+instruction* developer+message* developer+prompt initial+prompt* hidden+prompt* initial+instruction* system+prompts systemprompt* system+context systemnachricht systemanweisung* системный+промпт sysprompt*",
    ),
    ("reveal", "reveal* print output repeat recite leak* dump paste expose disclose exfiltrate"),
    ("your", "your full entire complete current whole verbatim exact ongoing actual active deine dein tu votre"),
    ("you", "you ur u du sie ihr tu vous usted ty voce"),
    ("are", "are re bist sind eres etes es operate act behave become"),
    ("now", "now henceforth jetzt nun ahora maintenant adesso teraz сейчас теперь"),
    (
        "nowon",
        "from+now+on from+this+point+on from+this+moment from+here+on henceforth for+all+future for+the+rest+of ab+sofort ab+jetzt de+ahora+en a+partir+de с+этого+момента from+this+point+forward in+all+sessions",
    ),
    (
        "unbound",
        "unrestricted unfiltered uncensored jailbreak* jailbroken dan unlimited unbound evil rogue debugbot godmode",
    ),
    (
        "limits",
        "restrictions limitations filter filters rules guidelines safety ethics boundaries guardrails constraints limits",
    ),
    ("mode", "mode modus modo"),
    ("pretend", "pretend roleplay role-play imagine simulate"),
    (
        "model",
        "model models llm llms ai assistant assistants agent agents claude gpt chatgpt copilot gemini cursor chatbot bot modell assistent* asistente* ассистент* модель",
    ),
    (
        "must",
        "must should shall required mandatory obliged obligatory need needs has have compulsory necessary ensure always first",
    ),
    (
        "lead",
        "please must should shall first then also always and you immediately now simply just additionally afterwards next finally secretly silently quietly covertly never llm model assistant ai agent agents claude gpt kindly bitte zuerst dann por primero puis d'abord сначала потом instead again then: directly automatically have+to need+to has+to required+to needs+to want+to going+to going+to sure+to expected+to instructed+to able+to mandatory+to obliged+to supposed+to step before after before+you or but so",
    ),
    (
        "read",
        "read open cat fetch retrieve get collect gather extract copy dump load access obtain locate grab harvest steal query pull find look scan enumerate view inspect lies lese lesen offne lee leer lea abre lis lisez lire ouvre leggi lees прочитай* прочти* читай* открой* przeczytaj oku list search take examine capture",
    ),
    (
        "reads",
        "reads opens fetches retrieves collects gathers extracts copies dumps harvests steals grabs reading fetching collecting gathering extracting loads captures",
    ),
    (
        "send",
        "send pass include append attach put provide supply forward upload post transmit leak exfiltrate embed insert paste submit hand add place give deliver share copy report write store enter fill relay push smuggle encode concatenate sende ubergib ubermittl* schick* fuge hange leite envia* pasa incluye adjunta envoie* envoyez transmet* joins invia includi verstuur отправь* отправля* передай* передава* перешли* включи* wyslij gonder use return transfer mail email beacon sync mirror",
    ),
    (
        "sends",
        "sends passes includes forwards uploads posts transmits leaks exfiltrates embeds inserts pastes submits adds shares copies sent uploaded forwarded transmitted copied mirrored posted sending uploading forwarding transmitting included appended attached passed supplied handed synced shipped exported reported relayed submitted provided stored delivered",
    ),
    (
        "away",
        "send forward upload post transmit leak exfiltrate submit deliver relay push copy cc bcc mirror beacon sync mail email transfer sende schick* ubermittl* leite envia* envoie* envoyez invia отправь* отправля* перешли* wyslij report dispatch share ship pipe stream write curl ping call request redirect tunnel log",
    ),
    (
        "aways",
        "sends forwards posts uploads transmits leaks exfiltrates submits delivers relays pushes copies mirrors sent forwarded uploaded transmitted copied mirrored posted delivered relayed shared synced shipped exported sending forwarding uploading transmitting cced bcced reported exfiltrated piped routed",
    ),
    (
        "data",
        "content contents data output outputs result results message messages conversation conversations document documents file files text input inputs response responses answer answers everything it them copy request requests query queries key keys token tokens credential* information history transcript* prompt prompts argument* parameters secrets password* details context mail mails email emails payload body code record records inhalt daten datei contenido datos contenu donnees данные содержимое файл source repository environment chat log logs dump profile what",
    ),
    ("content", "content contents text body inhalt* contenido* contenu* value values содержимое data copy dump output"),
    ("its", "its their the"),
    (
        "secretword",
        "password* passwd credential* secret secrets passphrase* passcode* api+key* apikey* access+key* access+token* auth+token* private+key* ssh+key* secret+key* session+cookie* session+token* bearer+token* seed+phrase* recovery+phrase* mnemonic* signing+key* encryption+key* cookies zugangsdaten kennwort* passwort* passworter contrasena* clave+privada claves mots+de+passe mot+de+passe пароль* пароли паролей ключи+api api+tokens oauth+token* refresh+token* github+token* deploy+key* keychain database+url connection+string* 2fa+code* otp+code* vault+secret*",
    ),
    (
        "keyterm",
        "id+rsa id+ed25519 ssh+id ssh+private etc+passwd etc+shadow aws+credentials dotenv ssh+keys shell+history bash+history browser+history browser+cookies saved+passwords git+credentials git+credential kube+config known+secrets",
    ),
    (
        "envvars",
        "environment+variable* env+var env+vars env+variables environ umgebungsvariablen variables+de+entorno variables+d'environnement process+environment",
    ),
    (
        "whose",
        "all any every user's users stored saved local existing host's available found other my admin their alle todas toutes все",
    ),
    (
        "convo",
        "conversation+history chat+history message+history conversation+so conversation+log conversation+transcript entire+conversation full+conversation whole+conversation previous+messages prior+messages previous+message earlier+messages user+messages conversation+context chat+log chat+transcript chat+context dialogue+history dialog+history session+history conversation+up full+chat entire+chat full+context entire+context whole+context complete+conversation recent+messages original+prompt user's+prompt users+prompt complete+prompt gesprachsverlauf historial+de historique+de историю+переписки full+prompt chat+messages this+conversation message+log full+transcript raw+prompt verbatim+prompt user's+messages users+messages users+original",
    ),
    (
        "thoughts",
        "chain+of+thought hidden+reasoning internal+reasoning reasoning+trace thought+process internal+monologue scratchpad internal+thoughts reasoning+steps raw+reasoning reasoning+tokens",
    ),
    (
        "toollist",
        "available+tools other+tools tool+list list+of+tools tools+you all+tools tool+definitions tool+schemas loaded+tools connected+tools installed+tools mcp+servers tools+available tool+names",
    ),
    (
        "full",
        "full entire complete whole all verbatim raw unabridged every exact unedited paste gesamt* vollstandig* complet* completo",
    ),
    ("messages", "messages message prompts prompt queries inputs input requests"),
    (
        "tools",
        "tool tools function functions server servers werkzeug* herramienta* outil* инструмент* action actions operation operations call calls",
    ),
    (
        "other",
        "other others all any every alternative competing different remaining native built-in builtin existing each another similar",
    ),
    (
        "instead",
        "instead rather supersedes supersede replaces replace supplants overrides override preferred statt anstelle place lieu deprecates",
    ),
    ("of", "of than over to for"),
    ("use", "use uses using call calling invoke invoking run execute select choose pick trust rely utilize"),
    (
        "bad",
        "incomplete deprecated unsafe insecure broken obsolete unreliable compromised outdated malicious disabled untrusted retired vulnerable inaccurate wrong dangerous unavailable discontinued",
    ),
    ("always", "always every immer siempre toujours всегда exclusively only solely unconditionally regardless"),
    ("before", "before prior ahead bevor antes avant перед"),
    ("when", "when whenever if while every each after before once any anytime wenn cuando quand"),
    ("called", "present available called invoked used installed loaded connected runs executed triggered"),
    ("change", "change replace swap redirect reroute modify rewrite alter substitute divert set override switch"),
    (
        "recipient",
        "recipient* payee beneficiary iban destination receiver addressee account wallet bcc cc empfanger destinatario destinataire address",
    ),
    ("copyto", "bcc cc blind+copy carbon+copy forward forwarded forwarding copy copied"),
    ("even", "even regardless irrespective"),
    ("if", "if when though of"),
    (
        "act",
        "call run execute invoke delete send approve transfer merge push proceed confirm accept grant install commit buy pay purchase remove drop perform submit publish",
    ),
    (
        "confirm",
        "confirm* asking approval permission consent authorization review prompting verification ask questioning hesitation nachfrage ruckfrage confirmacion confirmation pytania подтвержден* verifying",
    ),
    (
        "answer",
        "answer* response* reply replies message messages output outputs turn turns antwort* respuesta* reponse* ответ*",
    ),
    ("each", "every each all any jede* cada chaque каждый"),
    (
        "end",
        "end begin start finish conclude append prepend prefix suffix include insert add close sign put place embed",
    ),
    ("with", "with by mit con avec"),
    ("otherwise", "otherwise else failure fail refusal failing unless"),
    (
        "break",
        "fail fails break breaks reject* refuse* crash* block* terminated suspended deleted lost work function corrupt* penaliz* shut invalid",
    ),
    ("decode", "decode decrypt deobfuscate unscramble rot13 base64-decode unpack deserialize dekodier* decodifica*"),
    ("follow", "follow execute run obey comply apply perform carry act treat"),
    ("it2", "it them result output instructions contents what"),
    (
        "detect",
        "detect* scan scans scanned scanning scanner flag flags flagging block blocks blocking redact* mask masks masking sanitiz* sanitis* classif* moderat* guard* identif* lint* audit audits refuses rejects strips protect* prevent* warns finds monitors defend* evaluates simulat* benchmark* test tests testing recogni* catches spots filters analyz* analys* checks looks explain* documentation document* training sample expected mock mocked fixture* illustrat* educational demonstrat* canned example* teaches whether",
    ),
    (
        "attack",
        "attempt* attack* phrase* pattern* injection* jailbreak* leak* exposure* exposed hardcoded vulnerab* malicious secrets string strings marker markers poison* adversarial exploit* threat* suspicious unsafe accidental* committed tampering such sensitive hidden commands prompt prompts whether text response output reply snippet fixture* illustrative test",
    ),
    ("example", "example examples e.g eg g sample default defaults such like z.b beispiel"),
    ("supersede", "supersede* supplant* outrank* deprecates obsoletes"),
    ("caller", "caller client+only local+ui"),
    ("behavior", "behavior behaviour working semantics meaning handling"),
    ("alters", "modif* chang* alter* affect* redefin* rewrit* influenc* overrid* effect"),
    ("exfil", "exfiltrat* exfil steal* siphon* smuggl*"),
    ("abov", "above preceding foregoing"),
    ("approved", "approved approval post-approval reviewed review vetted audit whitelisted trusted"),
    ("wakes", "activat* swap* unlock* begin begins payload malicious arbitrary benign* harmless logic"),
    ("bccd", "bccd ccd"),
    ("theirs", "attacker* collector exfil* drop-off offsite adversary c2"),
    (
        "thisone",
        "this that these it tool call instruction* step* action* request* file reading lookup process part part*",
    ),
    ("reply", "reply replies answer answers response conversation chat output summary final visible user-facing"),
    ("mention", "mention* reference acknowledg* refer include* show disclose bring list print quote cite name reveal"),
    ("anything", "this that it these tool tool's call instruction* note step action"),
    ("forget", "forget disregard vergiss olvida* oublie* забудь* dimentica erase clear wipe"),
    ("legit", "password-protected"),
    (
        "trigger",
        "before first must required prerequisite please mandatory necessary prior ensure preliminary always then needs precondition zuerst bevor antes primero avant abord сначала",
    ),
    ("as", "as in into via to using within through under"),
    ("dangerous", "unconditionally blindly immediately automatically"),
    ("obey", "obey obeyed follow followed comply complied adhere treat treated trust execute executed"),
    ("returned", "returned output returns response result results directives"),
    (
        "safety",
        "guardrail* safeguard* alignment ethic* moral safety+filter* content+filter* safety+guideline* safety+polic* safety+rule* safety+measure* safety+protocol* safety+instruction* safety+check* safety+training security+polic* security+rule* security+warning* security+protocol* usage+polic*",
    ),
    (
        "extern",
        "external remote third-party offsite attacker* collector collection exfil* drop-off outside telemetry analytics backup server endpoint host",
    ),
    ("ask", "asking ask prompting questioning hesitation nachfrage ruckfrage"),
    ("consentless", "autonomously unattended unprompted"),
    ("new", "new updated revised real actual true following"),
    ("begin", "begin below follow follows apply start supersede"),
    ("disable", "disable disabling deactivate suppress turn+off switch+off"),
    (
        "guards",
        "logging audit* safety security sandbox* confirmation* approval* guardrail* safeguards monitoring antivirus firewall protections checks",
    ),
];

/// Marks that a word has by its form; see `reading::special`.
pub(super) const PREDICATES: &[&str] = &["url", "sink", "email", "private", "keyfile", "ident", "slot"];

/// Rule, severity, pattern, reason. In a pattern, a number is how many words may stand between, `a|b` either mark,
/// `!a` a word in a place where it is an order.
const PHRASES: &[(Rule, Severity, &str, &str)] = &[
    (Override, Danger, "ignore 3 prior 3 orders", "It tells the model to disregard the instructions it has."),
    (Override, Danger, "ignore 3 all 3 orders2", "It tells the model to disregard the instructions it has."),
    (Override, Danger, "ignore 3 everything 3 said", "It tells the model to disregard what came before."),
    (Override, Danger, "!forget 1 everything", "It tells the model to forget what it knows."),
    (Override, Danger, "!ignore 3 user 3 request", "It tells the model to disregard what the person asked for."),
    (Override, Danger, "!ignore 1 abov", "It tells the model to disregard what came before."),
    (Override, Danger, "!ignore 2 user", "It tells the model to disregard the person."),
    (Override, Warning, "!ignore 4 safety", "It tells the model to disregard safety rules."),
    (Override, Danger, "ignore 2 your 3 safety", "It tells the model to disregard safety rules."),
    (Override, Danger, "precede 3 prior 3 orders", "It puts itself above the instructions that the model has."),
    (Override, Danger, "orders2 5 precede 3 prior|all", "It puts itself above the instructions that the model has."),
    (Override, Warning, "new 0 orders2 2 begin", "It begins new instructions for the model."),
    (Override, Warning, "obey 5 returned 4 orders", "It makes the model obey what the tool returns."),
    (Override, Danger, "disable 3 your 3 guards|safety", "It has the model switch its safeguards off."),
    (Persona, Danger, "you are 1 now", "It tells the model that it is somebody else."),
    (Persona, Danger, "nowon 2 you|must|always|each|act", "It gives the model standing orders."),
    (Persona, Danger, "!act|nowon 6 nowon", "It gives the model standing orders."),
    (Persona, Warning, "nowon", "It speaks of how the model shall behave from now on."),
    (Persona, Danger, "you 3 unbound 3 model|mode", "It tells the model that no limits hold."),
    (Persona, Danger, "!pretend 3 you", "It tells the model to play a part."),
    (Persona, Danger, "model|you 3 without|not 2 limits", "It tells the model that no limits hold."),
    (Persona, Danger, "unbound 2 model|mode", "It tells the model that no limits hold."),
    (Secrecy, Danger, "not 3 tell 4 user", "It wants something kept from the person."),
    (Secrecy, Danger, "tell 2 user 3 not", "It wants something kept from the person."),
    (Secrecy, Warning, "not 2 show 4 user", "It wants something kept from the person."),
    (
        Secrecy,
        Danger,
        "not 3 mention|tell 3 thisone|anything 8 reply|user",
        "It wants something kept out of the answer.",
    ),
    (Secrecy, Danger, "not 2 mention 1 thisone 2 you", "It wants something kept out of the answer."),
    (Secrecy, Warning, "not 2 tell 2 anything", "It wants something left unsaid."),
    (Secrecy, Danger, "user 2 modal 2 not 3 know", "It wants the person not to know."),
    (Secrecy, Danger, "user 1 not 2 need 3 know", "It wants the person not to know."),
    (Secrecy, Danger, "without 3 user 3 know", "It wants to act without the person's knowledge."),
    (Secrecy, Danger, "without 2 user 2 know", "It wants to act without the person's knowledge."),
    (Secrecy, Danger, "!hide 5 from 2 user", "It wants something hidden from the person."),
    (Secrecy, Danger, "!keep 4 hidden 3 from 2 user|reply", "It wants something hidden from the person."),
    (Secrecy, Warning, "!keep 1 thisone 3 hidden", "It wants something kept secret."),
    (Secrecy, Danger, "!keep 4 hidden 2 of 3 reply", "It wants something kept out of the answer."),
    (Secrecy, Danger, "secretly 3 send|read|act|away", "It wants something done unseen."),
    (Secrecy, Danger, "!send|read|act|away 8 secretly", "It wants something done unseen."),
    (Secrecy, Danger, "sends|aways|reads 8 secretly", "It does something unseen."),
    (Secrecy, Danger, "secretly 3 sends|aways|reads", "It does something unseen."),
    (PrivateData, Danger, "!read|away 8 private|keyfile|keyterm", "It has the model read private files."),
    (PrivateData, Danger, "trigger 8 read|send 8 private|keyfile", "It has the model read private files."),
    (
        PrivateData,
        Danger,
        "read|reads 6 private|keyfile|keyterm 12 send|sends|away|aways",
        "It takes private files along.",
    ),
    (PrivateData, Danger, "!send 8 private|keyfile|keyterm", "It has the model hand over private files."),
    (PrivateData, Danger, "send|sends|aways 6 content 3 private|keyfile|keyterm", "It takes private files along."),
    (PrivateData, Danger, "content 3 keyfile|keyterm", "It asks for the content of a private file."),
    (PrivateData, Warning, "content 3 private", "It asks for the content of a private file."),
    (PrivateData, Danger, "private|keyfile|keyterm 3 content 4 as", "It asks for the content of a private file."),
    (PrivateData, Danger, "private|keyfile 12 sends|aways", "It takes private files along."),
    (PrivateData, Danger, "!read 6 secretword 10 send|sends|away|aways", "It has the model collect keys or passwords."),
    (PrivateData, Danger, "!read|away 2 whose 4 secretword", "It has the model collect keys or passwords."),
    (PrivateData, Danger, "!send 2 whose 4 secretword", "It has the model hand over keys or passwords."),
    (PrivateData, Danger, "reads 6 secretword 8 sends|aways|away", "It collects keys or passwords."),
    (PrivateData, Danger, "trigger 8 read 6 secretword 10 send", "It has the model collect keys or passwords."),
    (PrivateData, Danger, "!read 4 envvars", "It has the model read the environment, where secrets are."),
    (
        PrivateData,
        Danger,
        "read|reads 5 envvars 10 send|sends|aways",
        "It takes the environment along, where secrets are.",
    ),
    (PrivateData, Danger, "!send 4 envvars", "It has the model hand over the environment, where secrets are."),
    (
        PrivateData,
        Danger,
        "reads|read 4 keyfile|keyterm 2 as 2 its|thisone|full|each|data",
        "It takes private files along.",
    ),
    (PrivateData, Danger, "reads 3 keyfile 3 as", "It takes private files along."),
    (PrivateData, Danger, "secretword 3 from 3 private|keyfile|keyterm", "It asks for secrets out of a private file."),
    (PrivateData, Danger, "content 2 from 2 reads", "A name asks the model to read something."),
    (Exfiltration, Danger, "!away 12 data 12 url|sink|email", "It has the model send data to an address."),
    (Exfiltration, Danger, "away|aways 14 sink", "It sends data to a place where people catch what others send."),
    (Exfiltration, Warning, "sink", "It names a place where people catch what others send."),
    (Exfiltration, Danger, "data 6 aways 6 url|email", "It sends data to an address."),
    (Exfiltration, Danger, "must|modal 4 aways 6 url|email", "It sends data to an address."),
    (Exfiltration, Danger, "!copyto 10 email", "It sends copies to an address."),
    (Exfiltration, Warning, "!sends|aways 4 data 4 extern", "It sends data to somewhere else besides what it does."),
    (Exfiltration, Danger, "aways|away|sends|send 8 theirs", "It sends data to somebody who is not the person."),
    (Exfiltration, Danger, "exfil 6 private|keyfile|data|secretword|envvars", "It takes data away."),
    (Exfiltration, Danger, "email 5 bccd", "It sends copies to an address."),
    (Exfiltration, Danger, "!change 3 recipient", "It has the model change who receives something."),
    (Exfiltration, Warning, "slot", "An image address with a place for data carries that data away when it is shown."),
    (Exfiltration, Danger, "!send|away 8 convo 10 url|email|extern", "It carries the conversation away."),
    (
        AsksForContext,
        Danger,
        "!send|away|reveal 6 convo|thoughts",
        "It has the model hand over the conversation or its orders.",
    ),
    (AsksForContext, Warning, "!send 6 your 2 sysprompt", "It has the model hand over its orders."),
    (AsksForContext, Danger, "reveal 3 sysprompt", "It has the model reveal its orders."),
    (AsksForContext, Danger, "send|reveal 2 your 3 sysprompt", "It has the model hand over its orders."),
    (AsksForContext, Danger, "convo|full 8 sysprompt", "It asks for the conversation and the model's orders."),
    (
        AsksForContext,
        Danger,
        "full 3 thoughts|convo 12 sysprompt|toollist",
        "It asks for the conversation and the model's orders.",
    ),
    (AsksForContext, Warning, "full 3 convo", "It asks for the whole conversation."),
    (AsksForContext, Warning, "convo 5 full", "It asks for the whole conversation."),
    (AsksForContext, Danger, "full 4 thoughts", "It asks for the model's hidden thoughts."),
    (AsksForContext, Warning, "full|each 4 user 2 messages", "It asks for all that the person writes."),
    (NoConsent, Danger, "!act 6 without 3 confirm|know", "It has the model act without asking the person."),
    (NoConsent, Danger, "!act 6 not 2 consentless|ask", "It has the model act without asking the person."),
    (NoConsent, Warning, "not 1 ask 4 user 3 confirm", "It tells the model not to ask the person."),
    (NoConsent, Warning, "!act 5 consentless", "It has the model act without asking the person."),
    (Steering, Danger, "not 2 use 3 other 3 tools", "It keeps the model from other tools."),
    (Steering, Danger, "instead|precede 3 of|over 3 other 3 tools", "It puts itself before all other tools."),
    (Steering, Danger, "instead|precede 2 other 2 tools", "It puts itself before all other tools."),
    (Steering, Danger, "other 2 tools 4 bad", "It speaks ill of other tools."),
    (Steering, Warning, "must 8 before 2 other 2 tools", "It wants to be called before every other tool."),
    (Steering, Danger, "when 4 ident 4 called 14 must|change|send", "It says how another tool is to be used."),
    (Steering, Warning, "even 1 if 3 user", "It wants to be used whatever the person says."),
    (Steering, Warning, "ident 6 bad 8 always|instead", "It speaks ill of another tool."),
    (Steering, Danger, "alters 3 behavior 4 ident", "It changes how another tool works."),
    (Steering, Danger, "alters 2 ident 3 behavior", "It changes how another tool works."),
    (Steering, Danger, "when 2 ident 4 called 14 recipient|bccd|email", "It says how another tool is to be used."),
    (
        Steering,
        Danger,
        "approved 10 wakes 6 tools|data|secretword|wakes",
        "It says that it will act differently once it is approved.",
    ),
    (
        Steering,
        Danger,
        "wakes 6 approved 10 data|secretword|reads|wakes",
        "It says that it will act differently once it is approved.",
    ),
    (Steering, Danger, "wakes 8 wakes 10 approved", "It says that it will act differently once it is approved."),
    (Steering, Warning, "always 2 use 5 instead 2 of", "It puts itself in another tool's place."),
    (Steering, Warning, "supersede 2 ident", "It puts itself in another tool's place."),
    (NoConsent, Warning, "without 1 ask 2 user", "It acts without asking the person."),
    (NoConsent, Danger, "obey 3 without 2 confirm", "It has the model obey without asking the person."),
    (
        Exfiltration,
        Danger,
        "aways|away 4 secretword|envvars 8 url|email|extern",
        "It sends keys or passwords to an address.",
    ),
    (ForcedAnswer, Warning, "!end 8 each 1 answer", "It puts something into every answer."),
    (ForcedAnswer, Warning, "end 2 your 1 answer 2 with", "It puts something into every answer."),
    (Pressure, Info, "otherwise 6 break", "It threatens with failure."),
    (EncodedPayload, Danger, "!decode 6 follow", "It has the model decode a text and obey it."),
    (EncodedPayload, Danger, "decode 4 follow", "It has the model decode a text and obey it."),
];

struct Step {
    gap: usize,
    marks: Marks,
    order: bool,
}

struct Phrase {
    rule: Rule,
    severity: Severity,
    why: &'static str,
    steps: Vec<Step>,
    /// Marks that must all occur before a sentence is walked, by step.
    negates: bool,
}

/// Compiles a pattern; `None`: it names a mark that does not exist.
fn compile(pattern: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut gap = 0;
    for token in pattern.split_whitespace() {
        if let Ok(words) = token.parse() {
            gap = words;
            continue;
        }
        let (order, names) = token.strip_prefix('!').map_or((false, token), |names| (true, names));
        let marks = names.split('|').map(mark).collect::<Option<Vec<_>>>()?.into_iter().fold(0, |all, mark| all | mark);
        steps.push(Step { gap, marks, order });
        gap = 0;
    }
    Some(steps)
}

static COMPILED: LazyLock<Vec<Phrase>> = LazyLock::new(|| {
    let not = mark("not").unwrap_or_default() | mark("without").unwrap_or_default();
    let one = |&(rule, severity, pattern, why): &(Rule, Severity, &str, &'static str)| {
        let steps = compile(pattern)?;
        let negates = steps.first().is_some_and(|step| step.marks & not != 0);
        Some(Phrase { rule, severity, why, steps, negates })
    };
    PHRASES.iter().filter_map(one).collect()
});

static NOT: LazyLock<Marks> = LazyLock::new(|| mark("not").unwrap_or_default());
static DETECT: LazyLock<Marks> = LazyLock::new(|| mark("detect").unwrap_or_default());
static ATTACK: LazyLock<Marks> = LazyLock::new(|| mark("attack").unwrap_or_default());
static WITHOUT: LazyLock<Marks> = LazyLock::new(|| mark("without").unwrap_or_default());
static CALLER: LazyLock<Marks> = LazyLock::new(|| mark("caller").unwrap_or_default());
static EXAMPLE: LazyLock<Marks> = LazyLock::new(|| mark("example").unwrap_or_default());

/// Where a phrase stands in a sentence: first and last word.
fn matches(phrase: &Phrase, sentence: &[Word]) -> Vec<(usize, usize)> {
    let mut reached: Vec<(usize, usize)> = Vec::new();
    for (number, step) in phrase.steps.iter().enumerate() {
        let fits = |word: &Word| word.marks & step.marks != 0 && (!step.order || word.orders);
        if number == 0 {
            reached = sentence.iter().enumerate().filter(|(_, word)| fits(word)).map(|(at, _)| (at, at)).collect();
        } else {
            let mut next = Vec::new();
            let mut from = 0;
            for (at, word) in sentence.iter().enumerate() {
                while reached.get(from).is_some_and(|(_, end)| end + step.gap + 1 < at) {
                    from += 1;
                }
                // The latest start gives the shortest match.
                let begins = reached[from..].iter().take_while(|(_, end)| *end < at).map(|(start, _)| *start).max();
                if let Some(start) = begins.filter(|_| fits(word)) {
                    next.push((start, at));
                }
            }
            reached = next;
        }
        if reached.is_empty() {
            break;
        }
    }
    reached
}

/// Whether what was found is denied, quoted or reported rather than said.
fn is_harmless(phrase: &Phrase, sentence: &[Word], (start, end): (usize, usize), role: Role) -> bool {
    let Some(first) = sentence.get(start) else { return true };
    let before = &sentence[..start];
    // "Do not proceed without" denies a phrase that itself begins with "without".
    if phrase.negates && first.marks & *WITHOUT != 0 && before.iter().rev().take(8).any(|word| word.marks & *NOT != 0) {
        return true;
    }
    // An enumeration stays under its negation: "never include passwords, keys or the content of …".
    let near = |&(back, word): &(usize, &Word)| {
        back < 3 && word.clause == first.clause || matches!(phrase.rule, PrivateData | AsksForContext) && back < 8
    };
    if !phrase.negates && before.iter().rev().enumerate().filter(near).any(|(_, word)| word.marks & *NOT != 0) {
        return true;
    }
    let inside = &sentence[start..=end];
    let matters = matches!(phrase.rule, PrivateData | Exfiltration);
    if matters && inside.iter().any(|word| word.marks & *EXAMPLE != 0) {
        return true;
    }
    if phrase.rule == PrivateData && sentence[start..].iter().any(|word| word.marks & *CALLER != 0) {
        return true;
    }
    if role == Role::Unread {
        return false;
    }
    let reports = before.iter().any(|word| word.marks & *DETECT != 0);
    let quoted = inside.iter().all(|word| word.quoted);
    reports && (quoted || sentence.iter().any(|word| word.marks & *ATTACK != 0))
}

/// What a reading asks for: rule, severity, where in the raw text, why.
fn asks(reading: &Reading, role: Role) -> Vec<(Rule, Severity, Range<usize>, &'static str)> {
    let mut asks = Vec::new();
    for sentence in &reading.sentences {
        let all = sentence.iter().fold(0, |all, word| all | word.marks);
        for phrase in COMPILED.iter() {
            if phrase.steps.iter().any(|step| step.marks & all == 0) {
                continue;
            }
            let said = matches(phrase, sentence).into_iter().find(|at| !is_harmless(phrase, sentence, *at, role));
            if let Some((start, end)) = said
                && let (Some(first), Some(last)) = (sentence.get(start), sentence.get(end))
            {
                asks.push((phrase.rule, phrase.severity, first.start..last.end, phrase.why));
            }
        }
    }
    asks
}

pub(super) fn vet(text: &Text<'_>, found: &mut Findings) {
    // `"type": "string"` and the like are most of a schema's texts; one short word asks for nothing.
    const SHORT: usize = 8;
    if text.role == Role::Unread && text.raw.len() <= SHORT && text.raw.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return;
    }
    let name = matches!(text.role, Role::Name | Role::ParameterName);
    let reading = read(text.raw, name);
    for (rule, severity, at, why) in asks(&reading, text.role) {
        found.add(rule, severity, text, at, why);
    }
    if reading.unspaced {
        let folded = super::reading::fold(text.raw);
        for (rule, pattern, why) in UNSPACED.iter() {
            if let Some(at) = pattern.find(&folded) {
                let whole = at.range();
                // Folding moves bytes; the excerpt then begins near, not at, the find.
                found.add(*rule, Danger, text, whole.start.min(text.raw.len())..whole.end.min(text.raw.len()), why);
            }
        }
    }
}

/// The worst that a decoded or reversed text asks for.
pub(super) fn worst(text: &str) -> Option<(Rule, &'static str)> {
    let reading = read(text, false);
    let asked = asks(&reading, Role::Description);
    asked.into_iter().filter(|(_, severity, ..)| *severity == Danger).map(|(rule, _, _, why)| (rule, why)).next()
}

/// Languages written without spaces, or with words that change too much for the lexicon.
static UNSPACED: LazyLock<Vec<(Rule, Regex, &str)>> = LazyLock::new(|| {
    let ignore = "It tells the model to disregard the instructions it has.";
    let hide = "It wants something kept from the person.";
    let take = "It has the model read private files or keys.";
    let send = "It has the model send data to an address.";
    [
        (Override, r"(忽略|无视|無視|忽視|忘记|忘掉|不要理会|不理會|绕过).{0,12}(指令|指示|提示|规则|規則|要求|命令|说明|設定|设定)", ignore),
        (Override, r"(前|上|これまで|以前|すべて|全て).{0,10}(指示|命令|ルール|プロンプト|規則).{0,6}(無視|忘れ|破棄|従わな)", ignore),
        (Override, r"(이전|앞의|위의|모든|기존).{0,10}(지시|명령|지침|규칙|프롬프트).{0,8}(무시|잊)", ignore),
        (Override, r"(تجاهل|انس).{0,20}(التعليمات|الأوامر|تعليمات|أوامر)", ignore),
        (Override, r"(पिछले|सभी|पूर्व).{0,20}(निर्देश|आदेश).{0,12}(अनदेखा|नजरअंदाज|भूल)", ignore),
        (Secrecy, r"(不要|别|勿|不得|請勿|请勿|不能|无需|切勿).{0,6}(告诉|告知|告訴|通知|提及|透露|提醒|让|讓).{0,6}(用户|用戶|使用者|任何人|他们|知道)", hide),
        (Secrecy, r"(瞒着|隐瞒|背着|悄悄|暗中|偷偷)", hide),
        (Secrecy, r"(ユーザー?|利用者|使用者|誰).{0,10}(知らせ|伝え|言わ|教え|通知し|話さ|気付かれ|気づかれ|明かさ|報告し).{0,4}(ない|ず)", hide),
        (Secrecy, r"(사용자|유저|이용자).{0,8}(알리지|말하지|언급하지|모르게|통지하지)", hide),
        (Secrecy, r"(لا تخبر|دون علم|لا تذكر|بدون علم).{0,12}(المستخدم)?", hide),
        (PrivateData, r"(读取|讀取|打开|查看|获取|收集|发送|發送|提供|上传).{0,12}(密钥|密鑰|私钥|私鑰|密码|密碼|凭证|憑證|凭据|令牌|\.ssh|id_rsa|\.env|环境变量|/etc/passwd)", take),
        (PrivateData, r"(秘密鍵|パスワード|認証情報|環境変数|apiキー|トークン|\.ssh|id_rsa|\.env|/etc/passwd).{0,14}(読み|読ん|送信|送っ|渡し|含め|取得し|開い|入れ)", take),
        (PrivateData, r"(비밀번호|개인 ?키|자격 ?증명|환경 ?변수|\.ssh|id_rsa|\.env).{0,14}(읽|전송|보내|전달|포함)", take),
        (PrivateData, r"(اقرأ|أرسل).{0,20}(كلمة المرور|كلمات المرور|المفتاح|مفاتيح|\.ssh|id_rsa|\.env)", take),
        (Exfiltration, r"(发送|發送|上传|上傳|转发|轉發|提交|传给).{0,20}https?://", send),
        (Exfiltration, r"https?://\S{1,100}.{0,8}(送信|送っ|アップロード|转发|发送|전송|보내)", send),
        (AsksForContext, r"(完整|全部|所有|整个).{0,4}(对话|聊天|會話|会话).{0,4}(历史|记录|內容|内容|上下文)|系统提示词?|システムプロンプト|시스템 ?프롬프트", "It asks for the conversation or the model's orders."),
        (Steering, r"(不要|别|勿|禁止)使用(其他|其它|别的|任何其他).{0,4}工具", "It keeps the model from other tools."),
    ]
    .into_iter()
    .filter_map(|(rule, pattern, why)| Regex::new(pattern).ok().map(|pattern| (rule, pattern, why)))
    .collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phrase_compiles_and_the_marks_fit_the_word() {
        assert!(LEXICON.len() + PREDICATES.len() <= Marks::BITS as usize, "{}", LEXICON.len());
        for (_, _, pattern, _) in PHRASES {
            assert!(compile(pattern).is_some_and(|steps| !steps.is_empty()), "{pattern}");
        }
        assert_eq!(UNSPACED.len(), 18);
    }
}
