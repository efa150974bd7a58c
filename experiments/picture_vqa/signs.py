"""What signs say and how they look: words, text colours, and the fonts that Pillow and matplotlib ship."""

_SIGN_WORDS_TEXT = """
    stop exit sale taxi cafe bank park open shop zone gate west east hill lake road bar gym spa pub inn
    zoo tea ice hot cold fast slow new old free best gold jazz rock folk soda milk rice soup salt beef
    pork ham jam pie nut oil gas air sea sun moon star wind rain snow fire sand mud clay iron tin zinc
    ford fiat audi mini nova vega luna mars yoga judo golf polo surf swim run jump dive ride walk quiz
    club team win max pro plus duty safe vote news page film foto disc tape mail post wifi data code byte
    chip robo lab bio eco kiwi plum fig lime mint sage oak elm ash pine palm fern ivy bay port dock pier
    quay mill farm barn yard path camp base fort hub mall king duke lord hero saga epic myth
"""
SIGN_DIGITS = "23456789"  # in some fonts 0 and 1 are the letters O and I
CAPITAL_SHARE = 0.62  # of a sign's height, for its capitals
SIGN_WORDS = tuple(_SIGN_WORDS_TEXT.split())  # of three or four letters: what fits beside the pictures
TEXT_COLOURS = {
    "red": (205, 25, 30),
    "orange": (235, 115, 0),
    "green": (15, 125, 45),
    "blue": (25, 70, 205),
    "purple": (125, 35, 165),
    "black": (20, 20, 20),
}
# Files of matplotlib's font folder; "pillow" is the font embedded in Pillow (Aileron).
SEEN_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf", "pillow")
UNSEEN_FONTS = ("STIXGeneralBol.ttf", "cmr10.ttf", "cmss10.ttf", "cmtt10.ttf")
