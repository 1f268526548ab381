"""Tables and columns: what the dictionary of an instance says.

Columns are written `name:kind`, `name>table` for a reference, or a bare name for a string. A table
has its own columns and those of its parent. Which table a reference leads to, where the fact page
has no arrow, is general knowledge. [INF]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

_KINDS = {
    "i": "integer",
    "n": "decimal",
    "b": "boolean",
    "t": "glide_date_time",
    "d": "glide_date",
    "D": "glide_duration",
}
_SYSTEM = "sys_id sys_created_by sys_created_on:t sys_mod_count:i sys_updated_by sys_updated_on:t"
_DOMAIN = "sys_domain>sys_user_group sys_domain_path sys_tags"

_OWN_COLUMNS = {
    "task": """
        active:b activity_due:t additional_assignee_list approval approval_history approval_set:t
        assigned_to>sys_user assignment_group>sys_user_group business_duration:D
        business_service>cmdb_ci_service calendar_duration:D close_notes closed_at:t
        closed_by>sys_user cmdb_ci>cmdb_ci comments comments_and_work_notes company>core_company
        contact_type contract>ast_contract correlation_display correlation_id
        delivery_plan>sc_cat_item_delivery_plan delivery_task>sc_cat_item_delivery_task description
        due_date:t escalation:i expected_start:t follow_up:t group_list impact:i knowledge:b
        location>cmn_location made_sla:b number opened_at:t opened_by>sys_user order:i parent>task
        priority:i reassignment_count:i rejection_goto>task route_reason:i
        service_offering>service_offering short_description sla_due:t state:i sys_class_name
        task_effective_number universal_request>universal_request upon_approval upon_reject
        urgency:i watch_list wf_activity>wf_activity work_end:t work_notes work_notes_list
        work_start:t
    """,
    "incident": """
        business_impact business_stc:i calendar_stc:i caller_id>sys_user category cause
        caused_by>change_request child_incidents:i close_code hold_reason:i incident_state:i
        notify:i origin_id>task parent_incident>incident problem_id>problem reopen_count:i
        reopened_by>sys_user reopened_time:t resolved_at:t resolved_by>sys_user rfc>change_request
        severity:i subcategory
    """,
    "change_request": """
        backout_plan cab_date:d cab_date_time:t cab_delegate>sys_user cab_recommendation
        cab_required:b category change_plan chg_model>chg_model close_code conflict_last_run:t
        conflict_status end_date:t implementation_plan justification on_hold:b on_hold_reason
        on_hold_task outside_maintenance_schedule:b phase phase_state production_system:b reason
        requested_by>sys_user requested_by_date:t review_comments review_date:d review_status:i
        risk:i risk_impact_analysis scope:i start_date:t
        std_change_producer_version>std_change_producer_version test_plan type unauthorized:b
    """,
    "problem": """
        category cause_notes confirmed_at:t confirmed_by>sys_user duplicate_of>problem
        first_reported_by_task>task fix_at:t fix_by>sys_user fix_communicated_at:t
        fix_communicated_by>sys_user fix_notes known_error:b major_problem:b problem_state:i
        related_incidents:i reopen_count:i reopened_at:t reopened_by>sys_user resolution_code
        resolved_at:t resolved_by>sys_user review_outcome rfc>change_request subcategory workaround
        workaround_applied:b workaround_communicated_at:t workaround_communicated_by>sys_user
    """,
    "sys_user": """
        accumulated_roles active:b avatar building>cmn_building calendar_integration:i city
        company>core_company cost_center>cmn_cost_center country date_format
        default_perspective>sys_perspective department>cmn_department edu_status email
        employee_number enable_multifactor_authn:b failed_attempts:i first_name gender
        hashed_user_id home_phone internal_integration_user:b introduction last_login:d
        last_login_device last_login_time:t last_name last_password ldap_server>ldap_server_config
        location>cmn_location locked_out:b manager>sys_user middle_name mobile_phone name
        notification:i password_needs_reset:b phone photo preferred_language roles
        schedule>cmn_schedule source state sys_class_name time_format time_zone title user_name
        user_password vip:b web_service_access_only:b zip
    """,
    "sys_user_group": """
        active:b cost_center>cmn_cost_center default_assignee>sys_user description email
        exclude_manager:b include_members:b manager>sys_user name parent>sys_user_group roles source
        type
    """,
    "core_company": """
        apple_icon banner_image city contact>sys_user coordinates_retrieved_on country customer:b
        discount fax_phone fiscal_year latitude longitude manufacturer:b market_cap name notes
        num_employees parent>core_company phone primary:b profits publicly_traded:b rank_tier
        revenue_per_year state stock_price stock_symbol street sys_class_name theme vendor:b
        vendor_type website zip:i
    """,
    "cmdb_ci": """
        asset>alm_asset asset_tag assigned_to>sys_user assignment_group>sys_user_group
        attestation_status attributes business_unit>business_unit category
        change_control>sys_user_group company>core_company correlation_id cost:n cost_cc
        cost_center>cmn_cost_center department>cmn_department discovery_source dns_domain
        environment first_discovered:t fqdn hardware_status install_date:t install_status ip_address
        last_discovered:t location>cmn_location mac_address managed_by>sys_user
        manufacturer>core_company model_id>cmdb_model model_number name operational_status
        owned_by>sys_user purchase_date:t serial_number short_description subcategory
        support_group>sys_user_group sys_class_name sys_class_path unverified:b vendor>core_company
        warranty_expiration:t
    """,
    "time_card": """
        category friday:n monday:n notes project_time_category>project_time_category
        rate_type>time_card_rate_type resource_plan>resource_plan saturday:n state sunday:n
        task>task thursday:n time_sheet>time_sheet top_task>task total:n tuesday:n user>sys_user
        wednesday:n week_starts_on:d
    """,
    "sys_audit_delete": """
        display_value documentkey payload tablename
    """,
    "cmn_location": "name city country",
    "cmn_department": "name id",
    "sys_user_has_role": "user>sys_user role>sys_user_role inherited:b state",
    "syslog": "level:i message source",
    "sys_db_object": "name label super_class>sys_db_object is_extendable:b",
    "sys_dictionary": "name element internal_type reference max_length:i active:b column_label",
}
_SYSTEM_COLUMNS = {
    "task": f"{_SYSTEM} {_DOMAIN}",
    "cmdb_ci": f"{_SYSTEM} {_DOMAIN}",
    "sys_user": f"{_SYSTEM} {_DOMAIN}",
    "core_company": f"{_SYSTEM} sys_tags",
    "sys_user_has_role": "sys_id sys_created_by sys_created_on:t sys_mod_count:i",
    "syslog": "sys_id sys_created_by sys_created_on:t",
    "sys_audit_delete": "sys_id sys_created_by sys_created_on:t sys_updated_on:t",
}
"""Of the tables that differ from `_SYSTEM`; m2m and log tables have no sys_updated_on."""

PARENTS = {
    "incident": "task",
    "change_request": "task",
    "problem": "task",
    "cmdb_ci_computer": "cmdb_ci",
    "cmdb_ci_server": "cmdb_ci_computer",
    "cmdb_ci_service": "cmdb_ci",
}
TABLES = tuple(dict.fromkeys([*_OWN_COLUMNS, *PARENTS]))
NOT_AUDITED = ("syslog", "sys_user_has_role", "sys_audit_delete", "sys_dictionary", "sys_db_object")
"""Tables whose deletions sys_audit_delete does not record."""

_CLOSED = {"3": "Closed", "7": "Closed", "8": "Canceled", "4": "Canceled"}
_SCALE = {"1": "1 - High", "2": "2 - Medium", "3": "3 - Low"}
LABELS: dict[tuple[str, str], dict[str, str]] = {
    ("task", "state"): {"1": "Open", "2": "Work in Progress", "-5": "Pending"} | _CLOSED,
    ("incident", "state"): {"1": "New", "2": "In Progress", "3": "On Hold", "6": "Resolved"}
    | {"7": "Closed", "8": "Canceled"},
    ("change_request", "state"): {"-5": "New", "-4": "Assess", "-1": "Implement", "3": "Closed"},
    ("problem", "state"): {"101": "New", "103": "Root Cause Analysis", "107": "Closed"},
    ("task", "priority"): {
        "1": "1 - Critical",
        "2": "2 - High",
        "3": "3 - Moderate",
        "4": "4 - Low",
    },
    ("task", "impact"): _SCALE,
    ("task", "urgency"): _SCALE,
    ("incident", "severity"): _SCALE,
    ("task", "escalation"): {"0": "Normal", "1": "Moderate", "2": "High", "3": "Overdue"},
    ("task", "approval"): {"not requested": "Not Yet Requested", "approved": "Approved"},
    ("task", "contact_type"): {"phone": "Phone", "email": "Email", "self-service": "Self-service"},
    ("task", "sys_class_name"): {
        "task": "Task",
        "incident": "Incident",
        "change_request": "Change Request",
        "problem": "Problem",
    },
    ("incident", "category"): {
        "inquiry": "Inquiry / Help",
        "software": "Software",
        "hardware": "Hardware",
        "network": "Network",
    },
    ("change_request", "risk"): {"2": "High", "3": "Moderate", "4": "Low"},
    ("cmdb_ci", "operational_status"): {"1": "Operational", "2": "Non-Operational"},
    ("cmdb_ci", "install_status"): {"1": "Installed", "7": "Retired"},
}
"""The labels of choice columns, which are their display values. [INF]"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `target` is the table that a reference leads to."""

    name: str
    kind: str = "string"
    target: str = ""

    @classmethod
    def read(cls, text: str) -> Column:
        """Read `name`, `name:kind` or `name>table`."""
        name, _, target = text.partition(">")
        if target:
            return cls(name, "reference", target)
        name, _, letter = text.partition(":")
        return cls(name, _KINDS[letter]) if letter else cls(name)


class Schema:
    """The tables of one instance; columns may come and go. Not thread-safe."""

    def __init__(self) -> None:
        self.version = 0
        self.own: dict[str, dict[str, Column]] = {}
        for table in TABLES:
            system = "" if table in PARENTS else _SYSTEM_COLUMNS.get(table, _SYSTEM)
            texts = f"{_OWN_COLUMNS.get(table, '')} {system}".split()
            columns = [Column.read(text) for text in texts]
            self.own[table] = {column.name: column for column in columns}
        self.added: dict[str, Column] = {}
        self._columns: dict[str, dict[str, Column]] = {}

    def columns(self, table: str) -> dict[str, Column]:
        """Columns of a table by name, inherited ones included."""
        known = self._columns.get(table)
        if known is None:
            known = {}
            for one in reversed(lineage(table)):
                known |= self.own[one]
            self._columns[table] = known
        return known

    def add(self, table: str, column: Column) -> None:
        """Add a column to a table and its descendants.

        Raises:
            ValueError: the table has one of that name.
        """
        if column.name in self.columns(table):
            raise ValueError(f"{table} has a column {column.name!r}")
        self.own[table][column.name] = self.added[column.name] = column
        self._changed()

    def drop(self, table: str, name: str) -> None:
        """Remove a column from the table that has it as its own.

        Raises:
            ValueError: it has no such column of its own, or cannot do without it.
        """
        if name not in self.own[table] or name == "sys_id":
            raise ValueError(f"{table} has no column {name!r} of its own that could go")
        del self.own[table][name]
        self._changed()

    def label(self, table: str, name: str) -> dict[str, str] | None:
        """The display values of a choice column by value, or None if it is not one."""
        for one in lineage(table):
            if (one, name) in LABELS:
                return LABELS[one, name]
        return None

    def _changed(self) -> None:
        self._columns.clear()
        self.version += 1


@cache
def lineage(table: str) -> tuple[str, ...]:
    """The table and its ancestors, nearest first."""
    parent = PARENTS.get(table)
    return (table,) if parent is None else (table, *lineage(parent))


@cache
def descendants(table: str) -> tuple[str, ...]:
    """The table and all that extend it."""
    return tuple(one for one in TABLES if table in lineage(one))


def root_of(table: str) -> str:
    return lineage(table)[-1]
