"""Words that the simulated records are made of."""

from __future__ import annotations

FIRST_NAMES = [
    "Ada",
    "Bram",
    "Chiara",
    "Dmitri",
    "Elif",
    "Farah",
    "Gustavo",
    "Hana",
    "Ines",
    "Jonas",
    "Kaori",
    "Liam",
    "Mbali",
    "Nina",
    "Oluwaseun",
    "Priya",
    "Quentin",
    "Rosa",
    "Søren",
    "Tomás",
    "Ulla",
    "Viktor",
    "Wanjiru",
    "Xin",
    "Yusuf",
    "Zoë",
    "Anne-Marie",
    "José",
    "Łukasz",
    "Siobhán",
]

LAST_NAMES = [
    "Abernathy",
    "Bianchi",
    "Castillo",
    "Dvořák",
    "Eriksen",
    "Fitzgerald",
    "García",
    "Hofmann",
    "Ibrahim",
    "Jansen",
    "Kowalski",
    "Lindqvist",
    "Müller",
    "Nakamura",
    "O'Neill",
    "Petrov",
    "Quinn",
    "Rossi",
    "Silva",
    "Tanaka",
    "Usman",
    "Villanueva",
    "Weiß",
    "Xu",
    "Şahin",
    "Zhang",
]

FIRMS = [
    "Northwind",
    "Contoso",
    "Fabrikam",
    "Tailspin",
    "Wingtip",
    "Litware",
    "Adatum",
    "Proseware",
    "Lucerne",
    "Humongous",
    "Trey",
    "Relecloud",
    "Blue-Yonder",
    "Coho",
    "Margie's",
    "Fourth-Coffee",
    "Graphic-Design",
    "School-of-Fine-Art",
    "VanArsdel",
    "Woodgrove",
]

TRADES = [
    "Dental Group", "Legal LLP", "Logistics", "Veterinary Clinic", "Manufacturing",
    "Charter School", "Credit Union", "Brewery", "Architects", "Medical Imaging",
    "Insurance & Partners", "Farms",
]  # fmt: skip

CITIES = [
    ("Tampa", "FL", "33602"), ("Boise", "ID", "83702"), ("Dayton", "OH", "45402"),
    ("Zürich", "ZH", "8001"), ("Leeds", "YKS", "LS1 4AP"), ("Hobart", "TAS", "7000"),
    ("Québec", "QC", "G1R 4P5"), ("Austin", "TX", "78701"),
]  # fmt: skip

STREETS = ["Main St", "Harbour Rd", "Elm Ave", "Industriestrasse", "Rue Saint-Jean", "King's Way"]

PROBLEMS = [
    "Outlook cannot open", "VPN drops every hour", "New starter needs laptop", "Printer offline",
    "Backup job failed", "Disk space below 5%", "Phishing mail reported", "Password reset",
    "Server not responding to ping", "License expired", "Teams audio crackles",
    "Firewall rule change", "Monitor flickers", "Quarterly patching", "Shared mailbox access",
    "Certificate about to expire",
]  # fmt: skip

PHRASES = [
    "Called the user and confirmed the fault.", "Rebooted the switch in the comms cupboard.",
    "Waiting for the vendor; case number to follow.", "Removed the old profile and re-synced.",
    "User says it is urgent.", "Remote session, 20 minutes.", "Escalated to tier 2.",
    "Checked event log: nothing unusual.", "Replaced the cable & tested.", "Quoted for a new unit.",
]  # fmt: skip

BOARDS = ["Help Desk", "Managed Services", "Network Ops", "Projects", "Internal IT", "After Hours"]
STATUSES = ["New", "Assigned", "In Progress", "Waiting Customer", "Scheduled", "Closed", ">Closed"]
TYPES = ["Break-fix", "Request", "Alert", "Change", "Move/Add"]
SUBTYPES = ["Email", "Network", "Hardware", "Security", "Backup", "Account"]
ITEMS = ["Install", "Repair", "Advise", "Configure"]
TEAMS = ["Tier 1", "Tier 2", "NOC", "Field"]
PRIORITIES = [
    "Priority 1 - Critical", "Priority 2 - High", "Priority 3 - Medium", "Priority 4 - Low",
]  # fmt: skip
SOURCES = ["Phone", "Email Connector", "Portal", "RMM"]
LEVELS = ["Low", "Medium", "High"]
WORK_TYPES = ["Remote", "On-site", "After hours", "Travel"]
WORK_ROLES = ["Engineer", "Senior Engineer", "Project Manager", "Technician"]
BILLABLE = ["Billable", "DoNotBill", "NoCharge", "NoDefault"]
TIME_STATUSES = [
    "Open",
    "PendingApproval",
    "ApprovedByTierOne",
    "ReadyToBill",
    "Billed",
    "Rejected",
]
COUNTRIES = ["United States", "Switzerland", "United Kingdom", "Australia", "Canada"]
JOB_TITLES = ["Office Manager", "CFO", "Receptionist", "IT Lead", "Partner", "Nurse", "Driver"]
CATALOG = ["LAPTOP-14", "DOCK-USB4", "M365-BP", "EDR-SEAT", "AP-WIFI6", "SWITCH-24", "LABOR-BLOCK"]

NUL_TEXT = "pasted from a terminal\x00and cut\x00off"
EMOJI_TEXT = "🔥 server is 💀 — “smart quotes”, naïve café, 日本語, עברית, a\u200bzero width, 👩‍💻"
LINES_TEXT = 'first line\r\nsecond line\n\ttabbed, "quoted", back\\slash, comma; semi\u2028colon\n'
