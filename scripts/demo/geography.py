"""Countries, cities, rivers, mountains.

Left out on purpose: capitals and currencies that are disputed, split, or about to change.
"""

from collections.abc import Iterator
from itertools import chain

from demo.documents import Document, asked, capitalised, conversation, rows, sentence, statement

# name | capital | continent | currency
COUNTRIES = """
Albania | Tirana | Europe | Albanian lek
Andorra | Andorra la Vella | Europe | euro
Austria | Vienna | Europe | euro
Belarus | Minsk | Europe | Belarusian ruble
Belgium | Brussels | Europe | euro
Bosnia and Herzegovina | Sarajevo | Europe | convertible mark
Croatia | Zagreb | Europe | euro
the Czech Republic | Prague | Europe | Czech koruna
Denmark | Copenhagen | Europe | Danish krone
Estonia | Tallinn | Europe | euro
Finland | Helsinki | Europe | euro
France | Paris | Europe | euro
Germany | Berlin | Europe | euro
Greece | Athens | Europe | euro
Hungary | Budapest | Europe | Hungarian forint
Iceland | Reykjavik | Europe | Icelandic króna
Ireland | Dublin | Europe | euro
Italy | Rome | Europe | euro
Latvia | Riga | Europe | euro
Liechtenstein | Vaduz | Europe | Swiss franc
Lithuania | Vilnius | Europe | euro
Luxembourg | Luxembourg City | Europe | euro
Malta | Valletta | Europe | euro
Moldova | Chișinău | Europe | Moldovan leu
Montenegro | Podgorica | Europe | euro
the Netherlands | Amsterdam | Europe | euro
North Macedonia | Skopje | Europe | Macedonian denar
Norway | Oslo | Europe | Norwegian krone
Poland | Warsaw | Europe | Polish złoty
Portugal | Lisbon | Europe | euro
Romania | Bucharest | Europe | Romanian leu
Serbia | Belgrade | Europe | Serbian dinar
Slovakia | Bratislava | Europe | euro
Slovenia | Ljubljana | Europe | euro
Spain | Madrid | Europe | euro
Sweden | Stockholm | Europe | Swedish krona
Ukraine | Kyiv | Europe | Ukrainian hryvnia
the United Kingdom | London | Europe | pound sterling
Russia | Moscow | Europe and Asia | Russian ruble
Turkey | Ankara | Europe and Asia | Turkish lira
Afghanistan | Kabul | Asia | Afghan afghani
Bahrain | Manama | Asia | Bahraini dinar
Bangladesh | Dhaka | Asia | Bangladeshi taka
Bhutan | Thimphu | Asia | Bhutanese ngultrum
Brunei | Bandar Seri Begawan | Asia | Brunei dollar
Cambodia | Phnom Penh | Asia | Cambodian riel
China | Beijing | Asia | renminbi
India | New Delhi | Asia | Indian rupee
Iran | Tehran | Asia | Iranian rial
Iraq | Baghdad | Asia | Iraqi dinar
Japan | Tokyo | Asia | Japanese yen
Jordan | Amman | Asia | Jordanian dinar
Kuwait | Kuwait City | Asia | Kuwaiti dinar
Kyrgyzstan | Bishkek | Asia | Kyrgyz som
Laos | Vientiane | Asia | Lao kip
Lebanon | Beirut | Asia | Lebanese pound
Malaysia | Kuala Lumpur | Asia | Malaysian ringgit
the Maldives | Malé | Asia | Maldivian rufiyaa
Mongolia | Ulaanbaatar | Asia | Mongolian tugrik
Nepal | Kathmandu | Asia | Nepalese rupee
North Korea | Pyongyang | Asia | North Korean won
Oman | Muscat | Asia | Omani rial
Pakistan | Islamabad | Asia | Pakistani rupee
the Philippines | Manila | Asia | Philippine peso
Qatar | Doha | Asia | Qatari riyal
Saudi Arabia | Riyadh | Asia | Saudi riyal
South Korea | Seoul | Asia | South Korean won
Tajikistan | Dushanbe | Asia | Tajikistani somoni
Thailand | Bangkok | Asia | Thai baht
Turkmenistan | Ashgabat | Asia | Turkmen manat
the United Arab Emirates | Abu Dhabi | Asia | Emirati dirham
Uzbekistan | Tashkent | Asia | Uzbek sum
Vietnam | Hanoi | Asia | Vietnamese dong
Algeria | Algiers | Africa | Algerian dinar
Angola | Luanda | Africa | Angolan kwanza
Botswana | Gaborone | Africa | Botswana pula
Burkina Faso | Ouagadougou | Africa | West African CFA franc
Cameroon | Yaoundé | Africa | Central African CFA franc
Chad | N'Djamena | Africa | Central African CFA franc
Egypt | Cairo | Africa | Egyptian pound
Eritrea | Asmara | Africa | Eritrean nakfa
Ethiopia | Addis Ababa | Africa | Ethiopian birr
Gabon | Libreville | Africa | Central African CFA franc
the Gambia | Banjul | Africa | Gambian dalasi
Ghana | Accra | Africa | Ghanaian cedi
Guinea | Conakry | Africa | Guinean franc
Kenya | Nairobi | Africa | Kenyan shilling
Lesotho | Maseru | Africa | Lesotho loti
Liberia | Monrovia | Africa | Liberian dollar
Libya | Tripoli | Africa | Libyan dinar
Madagascar | Antananarivo | Africa | Malagasy ariary
Malawi | Lilongwe | Africa | Malawian kwacha
Mali | Bamako | Africa | West African CFA franc
Mauritania | Nouakchott | Africa | Mauritanian ouguiya
Mauritius | Port Louis | Africa | Mauritian rupee
Morocco | Rabat | Africa | Moroccan dirham
Mozambique | Maputo | Africa | Mozambican metical
Namibia | Windhoek | Africa | Namibian dollar
Niger | Niamey | Africa | West African CFA franc
Nigeria | Abuja | Africa | Nigerian naira
Rwanda | Kigali | Africa | Rwandan franc
Senegal | Dakar | Africa | West African CFA franc
Sierra Leone | Freetown | Africa | Sierra Leonean leone
Somalia | Mogadishu | Africa | Somali shilling
Tanzania | Dodoma | Africa | Tanzanian shilling
Togo | Lomé | Africa | West African CFA franc
Tunisia | Tunis | Africa | Tunisian dinar
Uganda | Kampala | Africa | Ugandan shilling
Zambia | Lusaka | Africa | Zambian kwacha
the Bahamas | Nassau | North America | Bahamian dollar
Barbados | Bridgetown | North America | Barbadian dollar
Belize | Belmopan | North America | Belize dollar
Canada | Ottawa | North America | Canadian dollar
Costa Rica | San José | North America | Costa Rican colón
Cuba | Havana | North America | Cuban peso
the Dominican Republic | Santo Domingo | North America | Dominican peso
El Salvador | San Salvador | North America | United States dollar
Guatemala | Guatemala City | North America | Guatemalan quetzal
Haiti | Port-au-Prince | North America | Haitian gourde
Honduras | Tegucigalpa | North America | Honduran lempira
Jamaica | Kingston | North America | Jamaican dollar
Mexico | Mexico City | North America | Mexican peso
Nicaragua | Managua | North America | Nicaraguan córdoba
Panama | Panama City | North America | Panamanian balboa
Trinidad and Tobago | Port of Spain | North America | Trinidad and Tobago dollar
the United States | Washington, D.C. | North America | United States dollar
Argentina | Buenos Aires | South America | Argentine peso
Brazil | Brasília | South America | Brazilian real
Chile | Santiago | South America | Chilean peso
Colombia | Bogotá | South America | Colombian peso
Ecuador | Quito | South America | United States dollar
Guyana | Georgetown | South America | Guyanese dollar
Paraguay | Asunción | South America | Paraguayan guaraní
Peru | Lima | South America | Peruvian sol
Suriname | Paramaribo | South America | Surinamese dollar
Uruguay | Montevideo | South America | Uruguayan peso
Venezuela | Caracas | South America | Venezuelan bolívar
Australia | Canberra | Oceania | Australian dollar
Fiji | Suva | Oceania | Fijian dollar
New Zealand | Wellington | Oceania | New Zealand dollar
Papua New Guinea | Port Moresby | Oceania | Papua New Guinean kina
Samoa | Apia | Oceania | Samoan tala
Vanuatu | Port Vila | Oceania | Vanuatu vatu
"""

# name | country, or - where the city is its own | where it is | what to say of it
CITIES = """
San Francisco | the United States | on the coast of California, in the United States | It stands on hilly land between the Pacific Ocean and San Francisco Bay. It is known for the Golden Gate Bridge, its cable cars and its summer fog.
New York | the United States | on the east coast of the United States | It has more inhabitants than any other city in the country. It is known for the Statue of Liberty, Central Park and the Empire State Building.
Los Angeles | the United States | in southern California, in the United States | It lies between the Pacific Ocean and the San Gabriel Mountains. It is known for Hollywood and its film studios.
Chicago | the United States | in Illinois, in the United States | It lies on the shore of Lake Michigan. It is known for its early skyscrapers and its deep-dish pizza.
Seattle | the United States | in the state of Washington, in the United States | It lies between Puget Sound and Lake Washington. It is known for the Space Needle and its rainy winters.
Boston | the United States | in Massachusetts, in the United States | It was founded in 1630, which makes it one of the oldest cities in the country. It is known for the Boston Tea Party and the universities nearby.
Paris | France | on the river Seine, in the north of France | It is the capital of the country. It is known for the Eiffel Tower, the Louvre and the cathedral of Notre-Dame.
London | the United Kingdom | on the river Thames, in the south of England | It is the capital of the United Kingdom. It is known for the Tower of London, Big Ben and its red buses.
Edinburgh | the United Kingdom | in the south-east of Scotland | It is the capital of Scotland. It is known for its castle, its old town and a festival in August.
Dublin | Ireland | on the river Liffey, on the east coast of Ireland | It is the capital of the country. It is known for Trinity College and the Book of Kells.
Rome | Italy | on the river Tiber, in central Italy | It is the capital of the country. It is known for the Colosseum, the Pantheon and the Trevi Fountain.
Venice | Italy | in a lagoon in the north-east of Italy | It is built on more than a hundred small islands. It is known for its canals, its gondolas and the square of St Mark.
Berlin | Germany | on the river Spree, in the north-east of Germany | It is the capital of the country. A wall divided it from 1961 to 1989. It is known for the Brandenburg Gate and its museums.
Munich | Germany | on the river Isar, in the south of Germany | It is the capital of Bavaria. It is known for the Oktoberfest and the English Garden.
Madrid | Spain | in the centre of Spain | It is the capital of the country. It is known for the Prado museum and the Royal Palace.
Barcelona | Spain | on the Mediterranean coast of Spain | It is the capital of Catalonia. It is known for the Sagrada Família, a church designed by Antoni Gaudí.
Lisbon | Portugal | on the west coast of Portugal, where the river Tagus meets the Atlantic Ocean | It is the capital of the country. It is known for its yellow trams and the Belém Tower.
Vienna | Austria | on the river Danube, in the east of Austria | It is the capital of the country. It is known for its music, its coffee houses and Schönbrunn Palace.
Prague | the Czech Republic | on the river Vltava, in the Czech Republic | It is the capital of the country. It is known for Charles Bridge, its castle and its astronomical clock.
Budapest | Hungary | on the river Danube, in Hungary | It is the capital of the country. It was formed in 1873, when Buda, Óbuda and Pest became one. It is known for its thermal baths.
Warsaw | Poland | on the river Vistula, in Poland | It is the capital of the country. Its old town was destroyed in the Second World War and was then rebuilt.
Athens | Greece | in the south of Greece | It is the capital of the country. It is known for the Acropolis, the hill on which the Parthenon stands.
Amsterdam | the Netherlands | in the west of the Netherlands | It is the capital of the country. It is known for its canals, its bicycles and the Rijksmuseum.
Brussels | Belgium | in the centre of Belgium | It is the capital of the country. It is known for the Grand-Place, the Atomium and the institutions of the European Union.
Copenhagen | Denmark | on the islands of Zealand and Amager, in Denmark | It is the capital of the country. It is known for the Little Mermaid and the Tivoli Gardens.
Stockholm | Sweden | on the east coast of Sweden | It is the capital of the country. It is built on fourteen islands. It is known for its old town and for the Nobel Prizes.
Oslo | Norway | at the head of the Oslofjord, in Norway | It is the capital of the country. The Nobel Peace Prize is awarded there each year.
Helsinki | Finland | on the Gulf of Finland, in the south of Finland | It is the capital of the country. It is known for its white cathedral and the sea fortress of Suomenlinna.
Reykjavik | Iceland | on the south-west coast of Iceland | It is the capital of the country. Hot water from the ground heats its houses.
Zürich | Switzerland | at the northern end of Lake Zürich, in Switzerland | It is the largest city in the country. It is known for its banks and its universities.
Geneva | Switzerland | at the western end of Lake Geneva, in Switzerland | It is the seat of the Red Cross. The laboratory CERN lies close by.
Istanbul | Turkey | on both sides of the Bosporus, in Turkey | It stands on two continents, Europe and Asia. It is known for the Hagia Sophia, the Blue Mosque and the Grand Bazaar.
Moscow | Russia | on the river Moskva, in the west of Russia | It is the capital of the country. It is known for the Kremlin and Red Square.
Cairo | Egypt | on the river Nile, in the north of Egypt | It is the capital of the country. The pyramids of Giza stand close by.
Marrakesh | Morocco | in Morocco, near the foot of the High Atlas | It is known for its red walls, its markets and the square called Jemaa el-Fnaa.
Nairobi | Kenya | in the south of Kenya | It is the capital of the country. A national park with lions and giraffes lies at its edge.
Cape Town | South Africa | on the south-west coast of South Africa | It lies below Table Mountain, a mountain with a flat top.
Dubai | the United Arab Emirates | on the Persian Gulf, in the United Arab Emirates | It is known for the Burj Khalifa, a tower 828 metres high.
Mumbai | India | on the west coast of India | It is known for its film industry and the Gateway of India.
Agra | India | on the river Yamuna, in the north of India | It is known for the Taj Mahal, a tomb of white marble.
Beijing | China | in the north of China | It is the capital of the country. It is known for the Forbidden City and the Temple of Heaven.
Shanghai | China | on the east coast of China, near the mouth of the Yangtze | It has one of the busiest ports in the world. It is known for the Bund, a row of old buildings along the river.
Tokyo | Japan | on the island of Honshu, in Japan | It is the capital of the country. It is known for Tokyo Tower, the Shibuya crossing and its cherry blossoms.
Kyoto | Japan | on the island of Honshu, in Japan | The emperors of Japan lived there for more than a thousand years. It is known for its temples and gardens.
Seoul | South Korea | on the river Han, in South Korea | It is the capital of the country. It is known for its palaces and its street markets.
Bangkok | Thailand | on the river Chao Phraya, in Thailand | It is the capital of the country. It is known for the Grand Palace and its floating markets.
Hanoi | Vietnam | on the Red River, in the north of Vietnam | It is the capital of the country. It is known for its Old Quarter and Hoan Kiem Lake.
Singapore | - | on an island at the southern end of the Malay Peninsula | It is also a country of its own. It is known for Marina Bay and its gardens.
Sydney | Australia | on the south-east coast of Australia | It is known for its opera house and the bridge across its harbour. It is not the capital of the country, which is Canberra.
Melbourne | Australia | on the river Yarra, in the south-east of Australia | It is the capital of the state of Victoria. It is known for its trams and the Australian Open.
Auckland | New Zealand | on the North Island of New Zealand | It lies between two harbours. It is known for its sailing boats and the Sky Tower.
Toronto | Canada | on the shore of Lake Ontario, in Canada | It has more inhabitants than any other city in the country. It is known for the CN Tower.
Montreal | Canada | on an island in the Saint Lawrence River, in Canada | Most of its inhabitants speak French. It is named after Mount Royal, the hill in its middle.
Vancouver | Canada | on the west coast of Canada | It lies between the sea and the mountains. It is known for Stanley Park.
Mexico City | Mexico | in a high valley in the centre of Mexico | It is the capital of the country. It was built on the ruins of Tenochtitlan, the capital of the Aztecs.
Havana | Cuba | on the north coast of Cuba | It is the capital of the country. It is known for its old town, its music and its old cars.
Rio de Janeiro | Brazil | on the Atlantic coast of Brazil | It is known for its carnival, the beach of Copacabana and the statue of Christ the Redeemer.
São Paulo | Brazil | in the south-east of Brazil | It has more inhabitants than any other city in the country. It is known for its museums and its skyscrapers.
Buenos Aires | Argentina | on the Río de la Plata, in Argentina | It is the capital of the country. It is known for the tango and its wide avenues.
Lima | Peru | on the Pacific coast of Peru | It is the capital of the country. It was founded by Francisco Pizarro in 1535.
Cusco | Peru | in the Andes, in the south of Peru | It was the capital of the Inca Empire. Many travellers to Machu Picchu start there.
Quito | Ecuador | in the Andes, in Ecuador | It is the capital of the country. It lies close to the equator, about 2,850 metres above the sea.
"""  # noqa: E501  one row a line keeps a city's facts together

# name | where | what it flows into
RIVERS = """
Nile | Africa | the Mediterranean Sea
Congo | Africa | the Atlantic Ocean
Niger | West Africa | the Gulf of Guinea
Zambezi | southern Africa | the Indian Ocean
Limpopo | southern Africa | the Indian Ocean
Amazon | South America | the Atlantic Ocean
Orinoco | Colombia and Venezuela | the Atlantic Ocean
Saint Lawrence | North America | the Gulf of Saint Lawrence
Yukon | Canada and Alaska | the Bering Sea
Mackenzie | Canada | the Arctic Ocean
Columbia | Canada and the United States | the Pacific Ocean
Hudson | the United States | the Atlantic Ocean
Yangtze | China | the East China Sea
Yellow River | China | the Bohai Sea
Ganges | India and Bangladesh | the Bay of Bengal
Indus | Asia | the Arabian Sea
Mekong | South-East Asia | the South China Sea
Irrawaddy | Myanmar | the Andaman Sea
Lena | Russia | the Laptev Sea
Volga | Russia | the Caspian Sea
Don | Russia | the Sea of Azov
Dnieper | Russia, Belarus and Ukraine | the Black Sea
Danube | central and eastern Europe | the Black Sea
Rhine | western Europe | the North Sea
Elbe | the Czech Republic and Germany | the North Sea
Vistula | Poland | the Baltic Sea
Thames | England | the North Sea
Severn | Wales and England | the Bristol Channel
Shannon | Ireland | the Atlantic Ocean
Seine | France | the English Channel
Loire | France | the Atlantic Ocean
Rhône | Switzerland and France | the Mediterranean Sea
Po | Italy | the Adriatic Sea
Tiber | Italy | the Tyrrhenian Sea
Ebro | Spain | the Mediterranean Sea
Tagus | Spain and Portugal | the Atlantic Ocean
"""

# name | height in metres | where
MOUNTAINS = """
Mount Everest | 8,849 | on the border of Nepal and China
Kangchenjunga | 8,586 | on the border of Nepal and India
Lhotse | 8,516 | on the border of Nepal and China
Makalu | 8,485 | on the border of Nepal and China
Aconcagua | 6,961 | in Argentina
Chimborazo | 6,263 | in Ecuador
Denali | 6,190 | in Alaska
Mount Logan | 5,959 | in Canada
Kilimanjaro | 5,895 | in Tanzania
Mount Elbrus | 5,642 | in Russia
Mount Kenya | 5,199 | in Kenya
Mount Vinson | 4,892 | in Antarctica
Mount Whitney | 4,421 | in California
The Matterhorn | 4,478 | on the border of Switzerland and Italy
Toubkal | 4,167 | in Morocco
Grossglockner | 3,798 | in Austria
Mount Fuji | 3,776 | in Japan
Teide | 3,715 | on the island of Tenerife
The Zugspitze | 2,962 | on the border of Germany and Austria
Mount Kosciuszko | 2,228 | in Australia
Ben Nevis | 1,345 | in Scotland
Snowdon | 1,085 | in Wales
"""


def documents() -> Iterator[Document]:
    """Yield every wording of every fact of this module."""
    yield from chain.from_iterable(_country(*row) for row in rows(COUNTRIES, 4))
    yield from chain.from_iterable(_city(*row) for row in rows(CITIES, 4))
    yield from chain.from_iterable(_river(*row) for row in rows(RIVERS, 3))
    yield from chain.from_iterable(_mountain(*row) for row in rows(MOUNTAINS, 3))


def _country(name: str, capital: str, continent: str, currency: str) -> Iterator[Document]:
    the_capital = sentence(f"the capital of {name} is {capital}")
    the_currency = f"The currency of {name} is the {currency}."
    the_continent = f"{capitalised(name)} is in {continent}."

    fact = f"capital of {name}"
    yield statement(fact, "capital-of", the_capital)
    yield statement(fact, "is-the-capital", f"{capital} is the capital of {name}.")
    yield from asked(
        fact,
        the_capital,
        f"What is the capital of {name}?",
        f"Which city is the capital of {name}?",
        f"Tell me the capital of {name}.",
    )

    fact = f"currency of {name}"
    yield statement(fact, "currency-of", the_currency)
    yield statement(fact, "people-pay", f"In {name}, people pay with the {currency}.")
    yield from asked(
        fact, the_currency, f"What is the currency of {name}?", f"Which money is used in {name}?"
    )

    fact = f"continent of {name}"
    yield statement(fact, "is-in", the_continent)
    yield from asked(fact, the_continent, f"Where is {name}?", f"Which continent is {name} in?")

    fact = f"country {name}"
    portrait = (
        f"{capitalised(name)} is a country in {continent}. "
        f"{sentence(f'its capital is {capital}')} Its currency is the {currency}."
    )
    yield statement(fact, "portrait", portrait)
    yield conversation(fact, "tell-me", f"Tell me about {name}.", portrait)
    yield conversation(
        fact,
        "capital-then-currency",
        f"What is the capital of {name}?",
        the_capital,
        "And what is its currency?",
        the_currency,
    )
    yield conversation(
        fact,
        "capital-then-continent",
        f"What is the capital of {name}?",
        the_capital,
        "And which continent is it in?",
        the_continent,
    )


def _city(name: str, country: str, where: str, more: str) -> Iterator[Document]:
    fact = f"city {name}"
    portrait = f"{name} is a city {where}. {more}"
    yield statement(fact, "portrait", portrait)
    yield from asked(fact, portrait, f"Tell me about {name}.", f"What do you know about {name}?")

    fact = f"place of {name}"
    place = f"{name} is {where}."
    yield statement(fact, "lies", f"The city of {name} lies {where}.")
    yield from asked(fact, place, f"Where is {name}?", f"Where can I find {name}?")

    if country != "-":
        fact = f"country of {name}"
        yield statement(fact, "country-of", f"The city of {name} is in {country}.")
        yield from asked(
            fact, f"{name} is in {country}.", f"Which country is {name} in?", f"In which country is {name}?"
        )


def _river(name: str, where: str, mouth: str) -> Iterator[Document]:
    fact = f"river {name}"
    flows = f"The {name} flows into {mouth}."
    yield statement(fact, "portrait", f"The {name} is a river in {where}. It flows into {mouth}.")
    yield statement(fact, "flows", flows)
    yield from asked(fact, flows, f"Where does the {name} flow?", f"What does the {name} flow into?")


def _mountain(name: str, height: str, where: str) -> Iterator[Document]:
    fact = f"mountain {name}"
    middle = name.replace("The ", "the ")
    high = f"{name} is {height} metres high."
    yield statement(fact, "portrait", f"{name} is a mountain {where}. It is {height} metres high.")
    yield statement(fact, "height-of", f"The height of {middle} is {height} metres.")
    yield from asked(fact, high, f"How high is {middle}?", f"What is the height of {middle}?")
    yield from asked(f"place of {name}", f"{name} is {where}.", f"Where is {middle}?")
