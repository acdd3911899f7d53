"""Words and sentence patterns for synthetic speech: everyday sentences, different for every seed.

About 1500 words in grammatical slots. A sentence belongs to the held-out set when the checksum of its text
says so, hence no held-out sentence is ever trained on, whatever the seeds. The module knows nothing of
sound; foreign sentences exist so that other languages' vowels are heard, not for their meaning.
"""

from __future__ import annotations

import random
import zlib

HELD_OUT_SHARE = 10  # one sentence in ten is kept for evaluation

PEOPLE = """my mother|my father|my sister|my brother|our teacher|the doctor|the baker|the old farmer
a young painter|the singer|the captain|our neighbour|the postman|my uncle|my aunt|her cousin|his grandmother
the mayor|the nurse|the gardener|a tall stranger|the children|the students|our friends|the twins|the driver
the librarian|the cook|the waiter|a clever engineer|the pilot|the tailor|the musician|the actress|the scientist
the carpenter|the fisherman|the judge|the lawyer|a quiet boy|a cheerful girl|the visitors|the tourists|the coach
the goalkeeper|the dentist|the plumber|the poet|the whole family|everybody|nobody|somebody|the young couple
the shepherd|the guard|the clown|Anna|Peter|Maria|Thomas|Julia|Oliver|Sophie|Walter|Emma|Victor|Bob|Pamela|Hugo
Fiona|George|Zoe|Martin|Wendy|Ruth|Jim"""

PRONOUNS = "I|you|we|they|he|she"

THINGS = """book|table|window|letter|basket|bottle|candle|mirror|blanket|bicycle|boat|bridge|piano|guitar|violin
drum|camera|telephone|computer|keyboard|hammer|ladder|bucket|broom|umbrella|jacket|coat|shirt|shoe|boot|glove
scarf|hat|ring|necklace|purse|wallet|key|lock|door|gate|fence|wall|roof|chimney|oven|kettle|teapot|cup|plate
bowl|spoon|fork|knife|pan|napkin|pillow|curtain|carpet|lamp|clock|watch|calendar|map|compass|tent|rope|backpack
suitcase|ticket|passport|newspaper|magazine|pencil|brush|painting|poster|photograph|statue|toy|puzzle|kite|ball
balloon|whistle|bell|trumpet|flute|radio|television|machine|engine|wheel|car|bus|train|truck|tractor|wagon|ship
ferry|plane|rocket|balcony|garden|tree|bush|flower|rose|tulip|daisy|leaf|branch|root|seed|apple|pear|plum|cherry
peach|melon|lemon|orange|banana|grape|berry|onion|potato|carrot|pumpkin|mushroom|pepper|bean|cabbage|tomato|loaf
cake|pie|biscuit|pancake|sandwich|sausage|omelette|soup|salad|pudding|jam|cheese|chocolate|poem|story|song|joke
secret|message|question|answer|idea|plan|recipe|present|prize|medal|cushion|sofa|chair|bench|shelf|drawer
cupboard|box|bag|parcel|envelope|stamp|coin|diary|notebook|dictionary|ruler|needle|thread|button|zip|ribbon
feather|shell|stone|brick|tile|pipe|wire|battery|torch|magnet|robot|telescope|microscope|thermometer|trophy|flag
crown|sword|shield|castle|tower|tunnel|fountain|ferry ticket|snowman|airport bus|anchor|apron|armchair|bandage
barrel|bathtub|beard|belt|binoculars|bookcase|bracelet|bulldozer|candlestick|cannon|cartoon|cello|chain
chessboard|cloud|cobweb|corkscrew|crayon|dishwasher|doorbell|doughnut|drawbridge|dustbin|elevator|eraser
fireplace|firework|freezer|frying pan|furnace|gravestone|haystack|headphone|helicopter|helmet|jigsaw|jewel|jug
lighthouse|mailbox|mattress|microphone|moustache|mug|nail|noodle|nutshell|paddle|padlock|pavement|peanut
photo album|pitchfork|playhouse|pocket|printer|quilt|raincoat|refrigerator|rocking chair|rug|saucer|scooter
screwdriver|shovel|skateboard|sledge|snowball|sock|sponge|submarine|sunflower|surfboard|swimsuit|switch|syringe
tablecloth|teaspoon|toaster|toothbrush|towel|tray|treehouse|trumpet case|vase|video|village map|waffle
washing machine|waterfall|wheelbarrow|windmill|wristwatch|yoghurt|yo-yo"""

ANIMALS = """dog|cat|horse|cow|sheep|goat|pig|hen|duck|goose|rabbit|mouse|hedgehog|fox|wolf|bear|deer|squirrel
owl|eagle|pigeon|parrot|penguin|dolphin|whale|shark|salmon|frog|turtle|lizard|snake|spider|butterfly|bee|beetle
ant|snail|camel|elephant|giraffe|monkey|tiger|lion|zebra|kangaroo|puppy|kitten|donkey|otter|beaver|swan|robin
crab|octopus"""

PLACES = """in the garden|at the station|by the river|near the lake|on the beach|in the kitchen|behind the house
under the old bridge|at the market|in the library|on the roof|in the forest|beside the road|at school
in the office|on the hill|in the village|across the street|at the harbour|in the museum|on the train
in front of the church|upstairs|in the cellar|at the airport|in the park|over the mountains|along the coast
in a small cafe|at the theatre|in the barn|on the island|in the valley|between the trees|at the corner
in the bathroom|on the balcony|at the swimming pool|outside|in the city|around the block|next to the bank
in the hotel|on the bus|at the farm|inside the cave|in the attic|downtown|at the post office|in the waiting room
on the playground|near the fountain|at home|in the meadow|on the ice|abroad"""

TIMES = """today|yesterday|tomorrow|this morning|last night|every evening|on Monday|on Tuesday|on Wednesday
on Thursday|on Friday|on Saturday|on Sunday|in January|in February|in March|in April|in May|in June|in July
in August|in September|in October|in November|in December|at noon|at midnight|before breakfast|after lunch
during dinner|in the summer|in winter|in spring|in autumn|an hour ago|two weeks ago|all day long
from time to time|once a year|twice a month|very early|too late|as usual|at seven o'clock|at half past eight
for the first time|again and again|until sunset|since childhood|right now|before the storm|after the concert
during the holidays|at dawn|while it was raining|when the music stopped"""

ADJECTIVES = """red|blue|green|yellow|purple|brown|white|black|golden|silver|big|small|tiny|huge|long|short|tall
narrow|wide|heavy|light|soft|hard|smooth|rough|warm|cold|hot|cool|wet|dry|fresh|old|new|modern|ancient|broken
empty|full|clean|dirty|shiny|dark|bright|pale|colourful|plain|simple|strange|funny|famous|lovely|beautiful|ugly
wonderful|terrible|cheap|expensive|valuable|precious|wooden|plastic|paper|leather|woollen|round|square|flat
curved|sharp|sweet|sour|bitter|salty|spicy|juicy|ripe|frozen|quiet|noisy|loud|fast|slow|gentle|wild|lazy|busy
brave|shy|proud|happy|sad|angry|friendly|polite|curious|clever|foolish|honest|lucky|hungry|thirsty|sleepy
perfect|ordinary|unusual|magical|secret|favourite|second|third"""

PAST = """bought|sold|found|lost|painted|repaired|carried|borrowed|forgot|remembered|described|wanted|needed
noticed|dropped|pushed|pulled|lifted|opened|closed|washed|cleaned|polished|broke|hid|showed|brought|offered|sent
received|chose|picked|measured|moved|wrapped|unpacked|collected|copied|drew|admired|loved|liked|hated|watched
touched|smelled|tasted|ordered|finished|began|improved|invented|designed|built|burned|saved|protected|followed
counted|photographed|mentioned|ignored|imagined|praised|examined|explained|prepared|shared|stole|returned|threw
caught|kicked|swallowed|decorated|covered|delivered|discovered|exchanged|fixed|gave away|held|kept|looked for
loaded|mixed|planted|recognised|replaced|rescued"""

BASE = """buy|sell|find|lose|paint|repair|carry|borrow|forget|remember|describe|want|need|notice|drop|push|pull
lift|open|close|wash|clean|polish|break|hide|show|bring|offer|send|receive|choose|pick|measure|move|wrap|unpack
collect|copy|draw|admire|love|like|hate|watch|touch|smell|taste|order|finish|begin|improve|invent|design|build
burn|save|protect|follow|count|photograph|mention|ignore|imagine|praise|examine|explain|prepare|share|steal
return|throw|catch|kick|decorate|cover|deliver|discover|exchange|fix|hold|keep|look for|load|mix|plant|recognise
replace|rescue"""

MOVED = """walked|ran|jumped|danced|laughed|smiled|cried|shouted|whispered|slept|waited|worked|played|travelled
sang|swam|climbed|arrived|left|sat|stood|talked|listened|argued|wandered|rested|hurried|stumbled|cheered|sneezed
coughed|yawned|practised|studied|cooked|cycled|sailed|skated|marched|whistled|dreamed|grew up|got lost
fell asleep|woke up|disappeared"""

ADVERBS = """quickly|slowly|carefully|quietly|loudly|happily|sadly|gladly|suddenly|finally|usually|often|rarely
never|always|perhaps|probably|certainly|obviously|fortunately|unfortunately|surprisingly|of course|in fact
as far as I know|honestly|after all|to be fair|believe it or not|by the way|for example|in my opinion
without a doubt|once more|little by little"""

REASONS = """it was too heavy|nobody had told them|the weather was perfect|the shop was closed
it looked delicious|there was not enough time|the road was blocked by snow|she had promised it
he could not find his glasses|the music was so beautiful|we had missed the bus|the price was fair
it smelled of smoke|they were very tired|everyone enjoyed the show|the lights went out|it had been a long week
I owed him a favour|the water was freezing|you asked me to|the baby was asleep|the bell had rung twice
somebody left the door open|it made us all laugh|the boss approved it|my phone was switched off
the view was amazing|they believed in magic|it was her birthday"""

CHAT = """Good morning, how are you?|Hello, and welcome back!|That sounds wonderful.
I am not so sure about that.|Could you say that again, please?|Thank you very much for your help.
Let me think about it for a moment.|What would you like to know?|See you tomorrow, have a good night.
Oh, I see what you mean.|Well, it depends.|Please take a seat and make yourself at home.
I am very pleased to meet you.|Never mind, it was not important.|How about a cup of coffee?|Yes, why not?
No, thank you, maybe later.|Excuse me, is this seat free?|Happy birthday to you!|Congratulations, you did it!
Oops, I made a mistake.|Wow, that is amazing!|I beg your pardon?|Nice weather, isn't it?
Do you need any help with that?|Sorry, I was not listening."""

QUESTIONS = """Where did|Why did|When did|How did|How often did|With whom did|Did"""

FEELINGS = """tired|proud|nervous|delighted|worried|surprised|disappointed|grateful|confused|excited|embarrassed
relieved|comfortable|exhausted|jealous|hopeful|lonely|amused|annoyed|optimistic|calm|impatient|satisfied
thoughtful|fearless"""

NUMBERS = """two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|twenty|thirty|fifty
sixty-five|a hundred|a thousand|a dozen|half a million|several|plenty of|hardly any|too many|a couple of"""

OPINIONS = """patience is a virtue|practice makes progress|music brings people together|good food takes time
every picture tells a story|the early bird catches the worm|laughter is the best medicine|honesty matters most
small steps lead far|nothing lasts for ever|where there is smoke there is fire|two heads think better than one
a good night's sleep works wonders|the simplest answer is often right|curiosity keeps us young
silence can be golden"""

TOPICS = """weather|traffic|football|chemistry|history|geography|mathematics|philosophy|economics|politics
medicine|fashion|architecture|gardening|astronomy|biology|physics|literature|poetry|cinema|photography
technology|psychology|archaeology|swimming|chess|cooking|fishing|hiking|dancing|religion|education|agriculture
electricity|engineering|journalism|sculpture|space travel|folk music|modern art|renewable energy
public transport|public health|bird watching|video games|jazz"""

NAMES = """Abigail|Adam|Agnes|Albert|Alice|Amanda|Andrew|Angela|Arthur|Barbara|Benjamin|Brian|Carol|Catherine
Charles|Charlotte|Chloe|Claire|Daniel|David|Deborah|Dorothy|Edward|Eleanor|Elizabeth|Ethan|Felix|Florence|Frank
Gabriel|Grace|Hannah|Harold|Helen|Henry|Isabel|Jacob|Jasmine|Jennifer|Joshua|Kevin|Laura|Leonard|Louise|Margaret
Matthew|Michael|Naomi|Nathan|Olivia|Patrick|Philip|Quentin|Rachel|Rebecca|Robert|Rosemary|Samuel|Sarah|Simon
Stephen|Susan|Theodore|Vanessa|Veronica|Vincent|William|Xavier|Yvonne"""

CITIES = """Amsterdam|Athens|Bangkok|Barcelona|Beijing|Berlin|Boston|Brussels|Budapest|Cairo|Chicago|Copenhagen
Dublin|Edinburgh|Florence|Geneva|Hamburg|Havana|Helsinki|Istanbul|Jakarta|Lagos|Lima|Lisbon|London|Madrid
Manchester|Melbourne|Montreal|Moscow|Mumbai|Munich|Nairobi|New York|Oslo|Paris|Prague|Rome|San Francisco|Seattle
Singapore|Stockholm|Sydney|Tokyo|Toronto|Vancouver|Venice|Vienna|Warsaw|Washington|Zurich|Argentina|Belgium
Brazil|Canada|Denmark|Egypt|Finland|France|Germany|Greece|Iceland|India|Ireland|Italy|Japan|Kenya|Mexico|Morocco
Norway|Peru|Poland|Portugal|Spain|Turkey"""

ABSTRACT = """freedom|friendship|courage|wisdom|beauty|truth|justice|progress|happiness|kindness|knowledge
memory|success|failure|adventure|danger|trouble|comfort|ambition|imagination|responsibility|generosity|ability
childhood|confidence|conversation|decision|difference|discipline|distance|energy|equality|experience|experiment
fortune|growth|habit|harmony|health|humour|independence|influence|inspiration|intelligence|joy|language
leadership|loyalty|luxury|marriage|motion|nature|opportunity|pleasure|poverty|power|privacy|purpose|reality
respect|rhythm|risk|safety|science|strength|style|talent|tradition|trust|variety|victory|vision|wealth|youth
zeal|thought|worth|measure|treasure|leisure|breath|birth"""

DOING = """reading|writing|drawing|baking|juggling|jogging|fixing things|making friends|telling stories
solving riddles|growing vegetables|feeding pigeons|washing dishes|mowing the lawn|playing cards|building models
learning vocabulary|speaking in public|getting up early|staying up late|climbing ladders|riding horses
chopping firewood|brewing beer|knitting socks|polishing shoes|answering emails|chasing shadows
catching butterflies|counting stars|moving furniture|whispering secrets|shovelling snow|sharing toothbrushes
arguing with strangers|exploring caves|meeting celebrities|typing reports|sharpening pencils|vacuuming rugs
ironing trousers|watering orchids|filming documentaries|judging others"""

FOREIGN: dict[str, tuple[str, ...]] = {
    "de": (
        "Guten Morgen|Hallo|Entschuldigung|Natürlich|Vielen Dank|Übrigens",
        "die Mutter|der Bäcker|das Mädchen|unser Freund|die Königin|ein Junge|der Zug|die kleine Eule",
        "sucht|findet|öffnet|kauft|malt|hört|grüßt|braucht|zeigt|liebt",
        "das Buch|einen Apfel|die Tür|ein Stück Kuchen|den Schlüssel|das Fenster|zwölf Blumen|ein Geschenk",
        "heute Abend|am Bahnhof|über der Brücke|im Frühling|mit großer Freude|auf dem Weg nach Hause",
    ),
    "fr": (
        "Bonjour|Bien sûr|Merci beaucoup|D'accord|Excusez-moi|Voilà",
        "la voisine|mon père|le boulanger|une jeune fille|le chat|notre ami|la reine|un oiseau bleu",
        "cherche|trouve|ouvre|achète|peint|écoute|regarde|oublie|montre|adore",
        "le livre|une pomme|la porte|un morceau de gâteau|les clés|la fenêtre|deux fleurs|un beau cadeau",
        "ce soir|à la gare|sous le pont|au printemps|avec plaisir|sur le chemin de la maison",
    ),
    "es": (
        "Buenos días|Hola|Por supuesto|Muchas gracias|Perdone|Claro",
        "mi madre|el panadero|la niña|nuestro amigo|la reina|un perro|el tren|la vecina",
        "busca|encuentra|abre|compra|pinta|escucha|saluda|necesita|muestra|olvida",
        "el libro|una manzana|la puerta|un trozo de pastel|las llaves|la ventana|doce flores|un regalo",
        "esta noche|en la estación|bajo el puente|en primavera|con mucho gusto|camino de casa",
    ),
    "it": (
        "Buongiorno|Ciao|Certamente|Grazie mille|Mi scusi|Ecco",
        "mia madre|il fornaio|la bambina|il nostro amico|la regina|un cane|il treno|la vicina",
        "cerca|trova|apre|compra|dipinge|ascolta|saluta|vuole|mostra|dimentica",
        "il libro|una mela|la porta|un pezzo di torta|le chiavi|la finestra|dodici fiori|un regalo",
        "stasera|alla stazione|sotto il ponte|in primavera|con piacere|sulla strada di casa",
    ),
}


def sentence(rng: random.Random, language: str = "en", held_out: bool = False) -> str:
    """One sentence from the training set, or from the held-out set (never the same text in both).

    Args:
        rng: source of all choices.
        language: "en" or a key of ``FOREIGN``.
        held_out: which of the two sets.
    """
    while True:
        text = _foreign(rng, language) if language in FOREIGN else _english(rng)
        if is_held_out(text) == held_out:
            return text


def is_held_out(text: str) -> bool:
    """Whether a sentence is reserved for evaluation, by the checksum of its letters."""
    letters = "".join(c for c in text.lower() if c.isalpha())
    return zlib.crc32(letters.encode()) % HELD_OUT_SHARE == 0


def vocabulary() -> set[str]:
    """All English words the sentences are made of, lower case."""
    slots = (
        PEOPLE, PRONOUNS, THINGS, ANIMALS, PLACES, TIMES, ADJECTIVES, PAST, BASE, MOVED, ADVERBS, REASONS, CHAT,
        QUESTIONS, FEELINGS, NUMBERS, OPINIONS, TOPICS, NAMES, CITIES, ABSTRACT, DOING,
    )  # fmt: skip
    words = " ".join(slots).replace("|", " ").lower().split()
    return {word.strip(".,?!") for word in words}


def _choose(rng: random.Random, slot: str) -> str:
    return rng.choice([item.strip() for line in slot.split("\n") for item in line.split("|")])


def _thing(rng: random.Random) -> str:
    noun = _choose(rng, THINGS if rng.random() < 0.8 else ANIMALS)
    words = f"{_choose(rng, ADJECTIVES)} {noun}" if rng.random() < 0.6 else noun
    determiner = rng.choice(("the", "the", "that", "a", "my", "your", "our", "his", "her"))
    return f"{'an' if determiner == 'a' and words[0] in 'aeiou' else determiner} {words}"


def _who(rng: random.Random) -> str:
    return _choose(rng, PEOPLE if rng.random() < 0.7 else PRONOUNS)


def _english(rng: random.Random) -> str:
    def pick(slot: str) -> str:
        return _choose(rng, slot)

    patterns = (
        lambda: f"{_who(rng)} {pick(PAST)} {_thing(rng)} {pick(PLACES)}.",
        lambda: f"{pick(TIMES)}, {_who(rng)} {pick(PAST)} {_thing(rng)}.",
        lambda: f"{_who(rng)} {pick(MOVED)} {pick(PLACES)} {pick(TIMES)}.",
        lambda: f"{pick(ADVERBS)}, {_who(rng)} {pick(PAST)} {_thing(rng)} because {pick(REASONS)}.",
        lambda: f"{pick(QUESTIONS)} {_who(rng)} {pick(BASE)} {_thing(rng)}?",
        lambda: f"Please {pick(BASE)} {_thing(rng)} and {pick(BASE)} {_thing(rng)}!",
        lambda: f"I think {pick(OPINIONS)}, but {_who(rng)} can talk about {pick(TOPICS)} for hours.",
        lambda: f"{_who(rng)} felt {pick(FEELINGS)} and {pick(FEELINGS)} {pick(TIMES)}.",
        lambda: f"There are {pick(NUMBERS)} {pick(ADJECTIVES)} things {pick(PLACES)}.",
        lambda: f"Would you rather {pick(BASE)} {_thing(rng)} or learn about {pick(TOPICS)}?",
        lambda: f"I saw {_thing(rng)} and {_thing(rng)} {pick(PLACES)}, which was {pick(ADJECTIVES)}.",
        lambda: f"{pick(TOPICS)} and {pick(TOPICS)} are not easy, yet {_who(rng)} {pick(MOVED)}.",
        lambda: f"{pick(CHAT)}",
        lambda: f"{pick(CHAT)} {pick(NAMES)} will {pick(BASE)} {_thing(rng)} {pick(TIMES)}.",
        lambda: f"{pick(NAMES)} and {pick(NAMES)} moved from {pick(CITIES)} to {pick(CITIES)} {pick(TIMES)}.",
        lambda: f"{pick(NAMES)} enjoys {pick(DOING)}, although {pick(DOING)} is more {pick(ADJECTIVES)}.",
        lambda: f"Is {pick(ABSTRACT)} worth more than {pick(ABSTRACT)}, or do we need {pick(ABSTRACT)}?",
        lambda: f"In {pick(CITIES)} they value {pick(ABSTRACT)} and {pick(DOING)}.",
    )
    text = rng.choice(patterns)()
    return text[0].upper() + text[1:]


def _foreign(rng: random.Random, language: str) -> str:
    greeting, who, verb, what, where = (_choose(rng, slot) for slot in FOREIGN[language])
    return f"{greeting}, {who} {verb} {what} {where}." if rng.random() < 0.5 else f"{who} {verb} {what}, {where}."
