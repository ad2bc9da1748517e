"""Questions of general knowledge. The text LLM answers them itself (`chat_questions.text_answers`).

They are of the kinds that `benchmarks/questions.json` has, about other things. A test checks that no text is in both.
"""

import re
from collections.abc import Iterable, Sequence


COUNTRIES = """
Spain|Austria|Belgium|Denmark|Sweden|Norway|Finland|Hungary|Ukraine|Ireland|Scotland|Romania|Bulgaria|Israel
Thailand|Vietnam|Iran|Iraq|Cuba|Chile|Argentina|Colombia|Venezuela|Bolivia|Australia|New Zealand|South Africa
Tanzania|Uganda|Sudan|Senegal|Madagascar|Mongolia|Malaysia|Singapore|Sri Lanka|Iceland|Croatia|Serbia
the Czech Republic|Jamaica
"""
ABOUT_COUNTRIES = (
    "Which language do people speak in {}?",
    "What language is spoken in {}?",
    "Which continent is {} on?",
    "What is {} known for?",
    "Name a city in {}.",
)
CITIES = """
Barcelona|Milan|Hamburg|Munich|Geneva|Krakow|Istanbul|Sydney|Melbourne|Chicago|Boston|Miami|Seattle|Montreal
Vancouver|Rio de Janeiro|Bombay|Shanghai|Hong Kong|Osaka|Cape Town|Casablanca|Alexandria|Lyon|Liverpool|Glasgow
Naples|Florence
"""
ABOUT_CITIES = ("In which country is {}?", "Where is {}?", "What can I see in {}?")
PEOPLE = """
Leonardo da Vinci|Galileo|Aristotle|Plato|Julius Caesar|Alexander the Great|Marco Polo|Joan of Arc|Isaac Newton
Albert Einstein|Charles Darwin|Thomas Edison|Marie Curie|Abraham Lincoln|George Washington|Benjamin Franklin|Gandhi
Martin Luther King|Nelson Mandela|Winston Churchill|Queen Victoria|Napoleon|Mozart|Bach|Beethoven|Picasso|Van Gogh
Rembrandt|Shakespeare|Charles Dickens|Mark Twain|Jane Austen|Homer|Sherlock Holmes|Robin Hood|Santa Claus|Zeus|Buddha
"""
ABOUT_PEOPLE = ("Who was {}?", "What is {} famous for?", "Tell me about {}.", "Where did {} live?")
WORKS = """
Romeo and Juliet|Othello|King Lear|The Iliad|Crime and Punishment|Anna Karenina|Emma|Jane Eyre|Wuthering Heights
Great Expectations|The Jungle Book|Peter Pan|Gulliver's Travels|Faust|Les Miserables|The Three Musketeers|Walden
The Time Machine|The War of the Worlds|Little Women|The Old Man and the Sea|The Lord of the Rings|Harry Potter|Utopia
"""
ABOUT_WORKS = ("Who wrote {}?", "Who is the author of {}?", "What is {} about?")
FOODS = """
butter|yogurt|beer|vinegar|flour|tofu|jam|mustard|pasta|pizza|sushi|popcorn|caramel|ice cream|a pancake|a salad
porridge|marmalade|olive oil|whisky|cider|soap|leather|plastic|steel|rubber|silk|wool|concrete|a candle|a rope|bricks
ink
"""
ABOUT_FOODS = ("What is {} made from?", "What is {} made of?", "How is {} made?")
ANIMALS = """
a tiger|a wolf|a fox|a rabbit|a squirrel|a deer|a giraffe|a hippo|a crocodile|a whale|a dolphin|a shark|a penguin
an owl|a parrot|a swan|a duck|a goose|a goat|a pig|a donkey|a monkey|a gorilla|a panda|a koala|a kangaroo|an octopus
a crab|a butterfly|an ant|a mosquito|a turtle|a lizard|a camel|a moose|a seal|a raccoon|a hedgehog|a hamster
a lobster
"""
ABOUT_ANIMALS = ("What does {} eat?", "Where does {} live?", "How many legs does {} have?", "What sound does {} make?")
TOOLS = """
a hammer|a saw|a needle|a pencil|an eraser|a ruler|a shovel|a ladder|a rope|a broom|a towel|a pillow|a blanket
an oven|a kettle|a fridge|a toaster|a scale|a map|a compass|a microscope|a telescope|a thermometer|a barometer
a stopwatch|a net|a battery|a magnet|a wheel|an anchor|a parachute|a helmet|a belt|a wallet|a stamp|a calendar
a dictionary|a whistle
"""
ABOUT_TOOLS = ("What is {} used for?", "What do you do with {}?", "Who uses {}?")
WORDS = """
hot|big|fast|early|long|rich|happy|strong|full|clean|open|young|wide|deep|hard|bright|loud|easy|near|first|sweet|wet
buy|win|begin|push|give|love|remember|build|enter|rise|day|friend|winter|peace|question|truth|top|inside|before
always
"""
ABOUT_WORDS = ("What is the opposite of {}?", "What does the word {} mean?", "Use the word {} in a sentence.")
PLURALS = "goose|ox|leaf|knife|wolf|city|box|sheep|fish|person|half|hero|potato|story|wife|bus|church|key|toy|shelf"
PASTS = "take|give|come|buy|think|bring|sing|swim|fly|drive|know|speak|break|sleep|find|make|leave|teach|catch|feel"
JOBS = """
bakes bread|sells flowers|teaches children|builds houses|paints pictures|plays the piano|drives a taxi
takes photographs|sings in an opera|fights in an army|works on a ship|makes clothes|cleans windows|delivers letters
studies the weather|studies history|sells meat|looks after patients|guards a prison|rules a kingdom|writes poems
tells jokes|dives for pearls
"""
ELEMENTS = "silver|carbon|hydrogen|nitrogen|sodium|copper|lead|tin|zinc|helium|sulfur|mercury|potassium|calcium|neon"
COUNTS = """
days are in a week|months are in a year|seconds are in a minute|minutes are in an hour|hours are in a day
weeks are in a year|years are in a century|years are in a decade|inches are in a foot|feet are in a yard
legs does a spider have|legs does an insect have|wheels does a car have|wheels does a bicycle have
eyes do people have|fingers are on a hand|teeth does an adult have|sides does a triangle have
sides does a square have|sides does a pentagon have|players are in a football team|keys does a piano have
planets are there|oceans are there|continents are there|letters are in the alphabet|vowels are there
seasons are there|eggs are in a dozen|days are in a leap year|days does February have|days does June have
pounds are in a ton|cents are in a dollar
"""
SINGLE = """
Which planet is the largest?|Which planet is the hottest?|Which planet is farthest from the sun?|What is a comet?
What is the largest ocean?|What is the smallest continent?|What is the highest waterfall?|What is the deepest lake?
Which river flows through Vienna?|Which river flows through Rome?|Which river flows through New York?
Which river is the longest in America?|Which ocean is west of California?|In which country are the Alps?
In which country is Moscow?|In which city is the White House?|In which city is the Kremlin?
In which city is the Louvre?|Which animal is the largest on earth?|Which animal is the tallest?
Which animal gives us milk?|Which animal gives us honey?|Which animal has a pouch?|Which animal has a long neck?
Which animal is the king of the jungle?|Which bird cannot fly?|Which bird can talk?|Which insect makes honey?
Which fish has sharp teeth?|What is a group of lions called?|What is a group of sheep called?
What is a group of birds called?|What is a male cow called?|What is a female lion called?|Who invented the radio?
Who invented the steam engine?|Who invented dynamite?|Who painted the Mona Lisa?|Who painted Guernica?
Who wrote the Ninth Symphony?|Who discovered electricity?|Who discovered the planets?
Who sailed around the world first?|Who was the first president of the United States?
Who was the first emperor of Rome?|Who was the mother of Jesus?|Who was the father of Isaac in the Bible?
Who was the god of the sea in Greek myths?|Who was the god of thunder?|When did the First World War end?
When did the Second World War begin?|When did Columbus sail to America?
When was the Declaration of Independence signed?|When did the Roman Empire fall?|When is the first day of spring?
Which color do you get from red and blue?|What color is the sky?|What color is a banana?|What color is blood?
What color is a carrot?|What color is a sapphire?|Which season comes after winter?|Which season is the coldest?
Which month is the shortest?|Which day comes after Friday?|Which holiday is in November?
What do people eat at Easter?|Which sport uses a racket?|Which sport is played on ice?
In which sport do you score a goal?|How long is a marathon?|Which instrument has black and white keys?
Which instrument do you beat with sticks?|Which instrument has a bow?|Which organ cleans the blood?
Which organ do we see with?|Which organ digests food?|Which sense uses the nose?|What do lungs do?
What does the heart do?|What do plants need to grow?|What do bees collect?|What do cows eat?
At what temperature does water boil?|What is frozen water called?|What falls from clouds?|What causes thunder?
What causes an earthquake?|What causes the seasons?|Why is the sky blue?|Why do leaves fall?|Why is the sea salty?
Which gas do we breathe?|Which gas do people breathe out?|Which metal is used for wires?|Which metal rusts?
What is the study of plants called?|What is the study of animals called?|What is the study of numbers called?
What do you call the son of your brother?|What do you call the mother of your mother?|What do you call a baby cat?
What do you use to cut paper?|What do you use to dry your hair?|What do you use to take a picture?
What do you use to dig?|What do you wear on your feet?|What do you wear on your head?|What do you put on bread?
What do you put in an envelope?
"""


def general_questions() -> list[str]:
    """All questions, each once, in a fixed order."""
    kinds = (
        (COUNTRIES, ABOUT_COUNTRIES),
        (CITIES, ABOUT_CITIES),
        (PEOPLE, ABOUT_PEOPLE),
        (WORKS, ABOUT_WORKS),
        (FOODS, ABOUT_FOODS),
        (ANIMALS, ABOUT_ANIMALS),
        (TOOLS, ABOUT_TOOLS),
        (WORDS, ABOUT_WORDS),
        (PLURALS, ("What is the plural of {}?",)),
        (PASTS, ("What is the past tense of {}?",)),
        (JOBS, ("What do we call a person who {}?",)),
        (ELEMENTS, ("What is the chemical symbol for {}?",)),
        (COUNTS, ("How many {}?",)),
        (SINGLE, ("{}",)),
    )
    return fill_forms(kinds)


def fill_forms(kinds: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Each form of each kind with each thing of its list, each text once. In a list, `|` and line breaks divide."""
    filled = (
        form.format(thing) for things, forms in kinds for thing in re.split(r"[|\n]", things.strip()) for form in forms
    )
    return list(dict.fromkeys(filled))
