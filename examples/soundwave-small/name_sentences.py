"""Sentences of our own grammar with the commonest names of people and places, spelled letters, dates and amounts."""

import random
from collections.abc import Callable, Iterable

from sentences import MONTHS, date_words, money_words, number_words, time_words, year_words


# The names among the 9,000 most frequent words of general English (`wordfreq`); public figures alone are left out.
FIRST_NAMES = """
Aaron Adam Adrian Alan Albert Alex Alexander Alfred Alice Amanda Amy Andrea Andrew Andy Angela Ann Anna Anne Annie
Anthony Antonio Arnold Arthur Barbara Barry Ben Benjamin Bernard Beth Betty Bradley Brandon Brian Bruce Carl Carlos
Caroline Casey Catherine Charles Charlie Chris Christine Christopher Claire Colin Craig Curtis Dan Daniel Danny Dave
David Dennis Derek Diana Donald Donna Doug Douglas Dylan Eddie Edward Elizabeth Ellen Emily Emma Eric Eva Felix Francis
Fred Gabriel Glenn Graham Greg Gregory Hannah Harold Harvey Helen Henry Herbert Hugh Ian Isaac Ivan Jackie Jacob Jake
James Jamie Jane Janet Jason Jean Jeff Jeffrey Jennifer Jenny Jeremy Jerry Jesse Jessica Jim Joan Joe Joel Joey Johnny
Jon Jonathan Jose Joseph Joshua Joyce Juan Julia Julian Julie Justin Karen Karl Kate Katie Keith Kenneth Kenny Kevin
Kim Kurt Kyle Larry Laura Lauren Leo Leonard Leslie Linda Lisa Lou Louis Louise Lucas Lucy Luis Luke Malcolm Marc Marco
Marcus Margaret Maria Marie Mario Martha Mary Matthew Maya Melissa Michael Michelle Miranda Molly Monica Nathan Neil
Nicholas Nicole Nina Noah Norman Oliver Oscar Owen Patrick Paul Pete Philip Rachel Ralph Raymond Rebecca Richard Ricky
Robert Ronald Roy Russell Ruth Ryan Samuel Sara Sarah Scott Sean Sebastian Seth Shane Sharon Simon Sophie Stephen
Steve Steven Stuart Susan Ted Terry Thomas Tim Todd Tommy Travis Trevor Tyler Victoria Vince Vincent Walter Wayne Wendy
William
""".split()  # noqa: SIM905
LAST_NAMES = """
Adams Allen Anderson Andrews Armstrong Bailey Barnes Bennett Blair Bryant Burke Campbell Carson Carter Chan Chen Clark
Clarke Cohen Cole Collins Crawford Cruz Davies Davis Edwards Ellis Evans Ferguson Garcia Gibson Gilbert Gordon Hamilton
Harper Harris Harrison Hayes Henderson Holmes Hopkins Howard Hudson Hughes Jackson Jenkins Johnson Jones Kelly Lawrence
Lewis Lloyd Marshall Mitchell Moore Morgan Morris Morrison Murphy Murray Nelson Palmer Parker Perry Peterson Phillips
Powell Quinn Reid Reynolds Richards Richardson Riley Roberts Robertson Robinson Ross Shaw Simpson Singh Spencer Stanley
Stevens Stewart Sullivan Taylor Thompson Wallace Walsh Wang Watson Williams Wilson Yang
""".split()  # noqa: SIM905
PLACES = """
Adelaide|Afghanistan|Africa|Alabama|Alaska|Alberta|America|Amsterdam|Argentina|Arizona|Arkansas|Athens|Atlanta|Austin
Australia|Austria|Baltimore|Bangkok|Bangladesh|Barcelona|Beijing|Belfast|Belgium|Berkeley|Berlin|Birmingham|Boston
Brazil|Brighton|Brisbane|Bristol|Britain|Brooklyn|Brussels|Bulgaria|Cairo|California|Cambridge|Canada|Cardiff|Charlotte
Chicago|Cincinnati|Cleveland|Colombia|Colorado|Columbus|Connecticut|Cuba|Dallas|Delaware|Delhi|Denmark|Denver|Detroit
Devon|Dubai|Dublin|Edinburgh|Egypt|England|Essex|Europe|Finland|Florence|Florida|France|Geneva|Georgia|Germany|Ghana
Glasgow|Greece|Hawaii|Holland|Hollywood|Hong Kong|Houston|Hungary|Idaho|Illinois|India|Indiana|Indonesia|Iowa|Iran|Iraq
Ireland|Israel|Italy|Jamaica|Jerusalem|Kansas|Kent|Kentucky|Kenya|Korea|Las Vegas|Lebanon|Leeds|Leicester|Liverpool
London|Los Angeles|Louisiana|Louisville|Madrid|Maine|Malaysia|Manchester|Manhattan|Manila|Maryland|Massachusetts
Melbourne|Memphis|Mexico|Miami|Michigan|Milan|Milwaukee|Minneapolis|Minnesota|Mississippi|Missouri|Montana|Montreal
Moscow|Mumbai|Munich|Nashville|Nebraska|the Netherlands|Nevada|New Delhi|New Hampshire|New Jersey|New Orleans|New York
New Zealand|Newcastle|Nigeria|Norfolk|North Carolina|North Dakota|Norway|Oakland|Ohio|Oklahoma|Ontario|Oregon|Orlando
Ottawa|Oxford|Pakistan|Panama|Paris|Pennsylvania|Perth|Peru|Philadelphia|the Philippines|Pittsburgh|Poland|Portland
Portugal|Princeton|Puerto Rico|Quebec|Queensland|Richmond|Rio|Rome|Russia|Sacramento|San Diego|San Francisco
Saudi Arabia|Scotland|Seattle|Seoul|Sheffield|Singapore|South Africa|Spain|Sri Lanka|Sudan|Sweden|Switzerland|Sydney
Syria|Taiwan|Tampa|Tennessee|Texas|Thailand|Tokyo|Toronto|Turkey|Ukraine|Utah|Vancouver|Venezuela|Venice|Vermont|Vienna
Vietnam|Virginia|Washington|Westminster|Wisconsin|Yemen|Yorkshire
""".replace("\n", "|").strip("|").split("|")  # fmt: skip

# {a} {b}: first names; {last} {last2}: surnames; {p} {q}: places; {spelled}: a name in letters; the rest by its name.
FRAMES = (
    "My name is {a} {last}, and I am calling from {p}.",
    "{a} and {b} moved from {p} to {q} in {year}.",
    "Did {a} {last} leave a message for {b}?",
    "The name is {last}, spelled {spelled}.",
    "{a} {last} was born in {p} on {date}.",
    "When does the next flight from {p} to {q} leave?",
    "Our office in {p} opens again on {date}.",
    "Mister {last} will meet Missus {last2} in {p} at {time}.",
    "Tell {a} that {b} has already left for {p}.",
    "It takes about {number} hours to drive from {p} to {q}.",
    "{a} paid {money} for two tickets to {p}.",
    "Doctor {last} studied in {p} and now teaches in {q}.",
    "Have you ever been to {p} in {month}?",
    "{a}, could you please ask {b} to call me back?",
    "I think {a} is older than {b}, but younger than {c}.",
    "The train to {p} stops in {q} for {number} minutes.",
    "Last summer {a} {last} travelled through {p} with a friend.",
    "Please send the letter to {a} {last} in {p}.",
    "Is {a} from {p} or from {q}?",
    "{a}, {b} and {c} are playing cards with Mister {last}.",
    "The weather in {p} is much colder than in {q}.",
    "Good morning, this is {a} from the office in {p}.",
    "Nobody in {p} remembers when {last} and {last2} opened their shop.",
    "{a} wrote the book about {p} in {year}.",
    "Who lent {a} the map of {p}?",
)


def name_sentences(count: int, rng: random.Random) -> list[str]:
    """`count` sentences; each frame and each name is used once before any is used again."""
    first, last, place = Deck(FIRST_NAMES, rng), Deck(LAST_NAMES, rng), Deck(PLACES, rng)
    fields = {
        **dict.fromkeys("abc", first.deal),
        **dict.fromkeys(("last", "last2"), last.deal),
        **dict.fromkeys("pq", place.deal),
        "date": lambda: date_words(rng),
        "time": lambda: time_words(rng).replace("M.", "M"),
        "month": lambda: rng.choice(MONTHS),
        "year": lambda: year_words(rng.randint(1900, 2025)),
        "number": lambda: number_words(rng.randint(2, 60)),
        "money": lambda: money_words(rng),
    }
    frames = Deck(FRAMES, rng)
    return [fill(frames.deal(), fields) for _ in range(count)]


def fill(frame: str, fields: dict[str, Callable[[], str]]) -> str:
    """A frame with what each of its fields draws; `{spelled}` is `{last}` in letters."""
    values = {name: draw() for name, draw in fields.items() if f"{{{name}}}" in frame}
    sentence = frame.format(**values, spelled=" ".join(values.get("last", "").upper()))
    return sentence[0].upper() + sentence[1:]


class Deck:
    """Items in random order; each comes once before any comes again."""

    def __init__(self, items: Iterable[str], rng: random.Random):
        self.items, self.rng, self.left = list(items), rng, []

    def deal(self) -> str:
        """The next item."""
        if not self.left:
            self.left = self.rng.sample(self.items, len(self.items))
        return self.left.pop()
