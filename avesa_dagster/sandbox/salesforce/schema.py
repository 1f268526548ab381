"""The objects of a simulated org, and their fields.

Source: `salesforce_fields.json` for the standard ones; custom fields (`__c`) are the simulator's.
Which object's SystemModstamp cannot be filtered the fact page does not say (airbyte PR 68166 saw
some): here it is TopicAssignment. [INF]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from avesa_dagster.sandbox.salesforce.fields import Field, parse_fields

_FIRST = "Id:id IsDeleted:boolean"
_ENTERED = "CreatedDate:datetime CreatedById:>User"
_CHANGED = "LastModifiedDate:datetime LastModifiedById:>User"
_STAMP = "SystemModstamp:datetime"
_ALL = f"{_FIRST} {_ENTERED} {_CHANGED} {_STAMP}"
CURSORS = ("SystemModstamp", "LastModifiedDate", "CreatedDate", "LoginTime")
"""Fields by which changes can be followed, the best first [AB][SST]."""

_FIELDS = {
    "Account": """
        MasterRecordId:>Account Name Type:picklist ParentId:>Account AccountNumber
        AccountSource:picklist AnnualRevenue:currency BillingStreet:textarea BillingCity
        BillingState BillingStateCode BillingPostalCode BillingCountry BillingLatitude:double
        BillingLongitude:double BillingGeocodeAccuracy:picklist BillingAddress:address
        ShippingStreet:textarea ShippingCity ShippingState ShippingStateCode ShippingPostalCode
        ShippingCountry ShippingCountryCode ShippingAddress:address Phone:phone Fax:phone
        Website:url PhotoUrl:url Industry:picklist NumberOfEmployees:int Ownership:picklist
        Rating:picklist Description:textarea Site TickerSymbol Jigsaw SicDesc OwnerId:>User
        RecordTypeId:>RecordType LastActivityDate:date LastViewedDate:datetime
        LastReferencedDate:datetime =Health__c Region__c:picklist
    """,
    "Contact": """
        MasterRecordId:>Contact AccountId:>Account LastName FirstName Salutation:picklist Name
        Title Department Email:email Phone:phone MobilePhone:phone HomePhone:phone Fax:phone
        MailingStreet:textarea MailingCity MailingState MailingStateCode MailingPostalCode
        MailingCountry MailingCountryCode MailingAddress:address OtherStreet:textarea OtherCity
        OtherState OtherPostalCode OtherCountry OtherAddress:address ReportsToId:>Contact
        LeadSource:picklist Birthdate:date Description:textarea IndividualId:>Individual
        OwnerId:>User EmailBouncedDate:datetime EmailBouncedReason IsEmailBounced:boolean
        LastActivityDate:date LastViewedDate:datetime LastReferencedDate:datetime
    """,
    "Case": """
        MasterRecordId:>Case CaseNumber ContactId:>Contact AccountId:>Account AssetId:>Asset
        ParentId:>Case SuppliedName SuppliedEmail:email SuppliedPhone:phone SuppliedCompany
        Type:picklist RecordTypeId:>RecordType Status:picklist Reason:picklist Origin:picklist
        Subject Priority:picklist Description:textarea IsClosed:boolean ClosedDate:datetime
        IsEscalated:boolean OwnerId:>User IsClosedOnCreate:boolean =ContactPhone:phone
        =ContactMobile:phone =ContactEmail:email Comments:textarea LastViewedDate:datetime
        LastReferencedDate:datetime Products__c:multipicklist =Sla_Hours_Left__c:double
    """,
    "Opportunity": """
        AccountId:>Account Name Description:textarea StageName:picklist Amount:currency
        Probability:percent =ExpectedRevenue:currency CloseDate:date Type:picklist NextStep
        LeadSource:picklist IsClosed:boolean IsWon:boolean ForecastCategory:picklist
        ForecastCategoryName:picklist CampaignId:>Campaign Pricebook2Id:>Pricebook2
        HasOpportunityLineItem:boolean HasOpenActivity:boolean HasOverdueTask:boolean Fiscal
        FiscalQuarter:int FiscalYear:int OwnerId:>User RecordTypeId:>RecordType
        SyncedQuoteId:>Quote LastActivityDate:date LastViewedDate:datetime
        LastReferencedDate:datetime
    """,
    "Lead": """
        MasterRecordId:>Lead LastName FirstName Salutation:picklist Name Title Company
        Street:textarea City State StateCode PostalCode Country CountryCode Address:address
        Phone:phone MobilePhone:phone Fax:phone Email:email Website:url Description:textarea
        LeadSource:picklist Status:picklist Industry:picklist Rating:picklist
        AnnualRevenue:currency NumberOfEmployees:int OwnerId:>User HasOptedOutOfEmail:boolean
        IsConverted:boolean ConvertedDate:date ConvertedAccountId:>Account
        ConvertedContactId:>Contact ConvertedOpportunityId:>Opportunity IsUnreadByOwner:boolean
        EmailBouncedDate:datetime EmailBouncedReason IndividualId:>Individual
        LastActivityDate:date LastViewedDate:datetime LastReferencedDate:datetime
    """,
    "Task": """
        WhoId:>Contact|Lead WhatId:>Account|Opportunity|Case WhoCount:int WhatCount:int Subject
        ActivityDate:date Status:picklist Priority:picklist IsHighPriority:boolean OwnerId:>User
        Description:textarea Type:picklist AccountId:>Account IsClosed:boolean
        IsArchived:boolean CallDurationInSeconds:int CallType:picklist CallDisposition
        CallObject ReminderDateTime:datetime IsReminderSet:boolean RecurrenceActivityId:>Task
        IsRecurrence:boolean TaskSubtype:picklist CompletedDateTime:datetime
        RecordTypeId:>RecordType
    """,
    "Event": """
        WhoId:>Contact|Lead WhatId:>Account|Opportunity|Case WhoCount:int WhatCount:int Subject
        Location IsAllDayEvent:boolean ActivityDateTime:datetime ActivityDate:date
        DurationInMinutes:int StartDateTime:datetime EndDateTime:datetime EndDate:datetime
        Description:textarea AccountId:>Account OwnerId:>User Type:picklist IsPrivate:boolean
        ShowAs:picklist IsChild:boolean IsGroupEvent:boolean GroupEventType IsArchived:boolean
        RecurrenceActivityId:>Event IsRecurrence:boolean ReminderDateTime:datetime
        IsReminderSet:boolean EventSubtype:picklist
    """,
    "User": """
        Username LastName FirstName Name CompanyName Department Title Street:textarea City State
        StateCode PostalCode Country CountryCode Address:address Email:email Phone:phone
        MobilePhone:phone Alias IsActive:boolean TimeZoneSidKey:picklist LocaleSidKey:picklist
        LanguageLocaleKey:picklist EmailEncodingKey:picklist ProfileId:>Profile
        UserType:picklist UserRoleId:>UserRole ManagerId:>User LastLoginDate:datetime
        ContactId:>Contact AccountId:>Account IndividualId:>Individual FederationIdentifier
        EmployeeNumber LastViewedDate:datetime LastReferencedDate:datetime
    """,
    "Project__c": """
        OwnerId:>User Name Account__c:>Account Status__c:picklist Tags__c:multipicklist
        Start_Date__c:date Budget__c:currency Percent_Done__c:percent Seats__c:double
        Billable__c:boolean Legacy_Account_Id__c Notes__c:textarea Site__Latitude__s:double
        Site__Longitude__s:double Site__c:location =Margin__c:currency =Account_Name__c
        LastActivityDate:date
    """,
    "Product2": """
        Name ProductCode Description:textarea QuantityScheduleType QuantityInstallmentPeriod
        NumberOfQuantityInstallments:int RevenueScheduleType RevenueInstallmentPeriod
        NumberOfRevenueInstallments:int IsActive:boolean Family:picklist ExternalId
        DisplayUrl:url QuantityUnitOfMeasure IsArchived:boolean RecordTypeId:>RecordType
        LastViewedDate:datetime LastReferencedDate:datetime
    """,
    "OpportunityLineItem": """
        OpportunityId:>Opportunity SortOrder:int PricebookEntryId:>PricebookEntry
        Product2Id:>Product2 ProductCode Name Quantity:double Discount:double
        TotalPrice:currency UnitPrice:currency ListPrice:currency ServiceDate:date
        HasRevenueSchedule:boolean HasQuantitySchedule:boolean HasSchedule:boolean
        Description:textarea LastViewedDate:datetime LastReferencedDate:datetime
    """,
    "Order": """
        OwnerId:>User ContractId:>Contract AccountId:>Account Pricebook2Id:>Pricebook2
        OriginalOrderId:>Order OpportunityId:>Opportunity EndDate:date Status:picklist
        Description:textarea Type:picklist BillingStreet:textarea BillingCity BillingState
        BillingStateCode BillingPostalCode BillingCountry BillingCountryCode
        ShippingStreet:textarea ShippingCity ShippingState ShippingStateCode ShippingPostalCode
        ShippingCountry ShippingCountryCode ActivatedDate:datetime ActivatedById:>User
        OrderNumber TotalAmount:currency LastViewedDate:datetime LastReferencedDate:datetime
    """,
    "UserRole": """
        Name ParentRoleId:>UserRole RollupDescription OpportunityAccessForAccountOwner
        DeveloperName
    """,
    "CaseHistory": "CaseId:>Case Field:picklist DataType:picklist OldValue NewValue",
    "CaseShare": """
        CaseId:>Case UserOrGroupId:>User CaseAccessLevel:picklist RowCause:picklist
    """,
    "LoginHistory": """
        UserId:>User LoginTime:datetime LoginType:picklist SourceIp Status Application
    """,
    "TopicAssignment": "TopicId:>Topic EntityId:>Case EntityKeyPrefix",
    "CaseStatus": "MasterLabel ApiName SortOrder:int IsDefault:boolean IsClosed:boolean",
    "Attachment": """
        ParentId:>Case Name IsPrivate:boolean ContentType BodyLength:int Body:base64
        OwnerId:>User Description:textarea
    """,
    "ActivityHistory": "AccountId:>Account Subject ActivityDate:date",
}
_COMMON = {
    "User": f"Id:id {_ENTERED} {_CHANGED} {_STAMP}",
    "UserRole": f"Id:id {_ENTERED} {_CHANGED} {_STAMP}",
    "CaseHistory": f"{_FIRST} {_ENTERED}",
    "CaseShare": f"{_FIRST} {_CHANGED}",
    "LoginHistory": "Id:id",
    "TopicAssignment": f"{_FIRST} {_ENTERED} {_STAMP}",
    "CaseStatus": f"Id:id {_ENTERED} {_CHANGED} {_STAMP}",
}
PREFIXES = {
    "Account": "001", "Contact": "003", "Case": "500", "Opportunity": "006", "Lead": "00Q",
    "Task": "00T", "Event": "00U", "User": "005", "Project__c": "a0B", "Product2": "01t",
    "OpportunityLineItem": "00k", "Order": "801", "UserRole": "00E", "CaseHistory": "017",
    "CaseShare": "01n", "LoginHistory": "0Ya", "TopicAssignment": "0TA", "CaseStatus": "0Cs",
    "Attachment": "00P", "ActivityHistory": "007",
    # not served, only referred to
    "RecordType": "012", "Individual": "0PK", "Asset": "02i", "Campaign": "701", "Quote": "0Q0",
    "Pricebook2": "01s", "Profile": "00e", "PricebookEntry": "01u", "Contract": "800",
    "Topic": "0TO",
}  # fmt: skip
"""Object to the first three characters of its ids."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object.

    Attributes:
        cursor: the field whose order the simulator keeps; None if no instant is known.
        queryable, bulk: whether SOQL, and Bulk API 2.0, take it.
        replicateable: whether getDeleted and getUpdated take it.
        children: child relationship name to (object, its reference field).
    """

    name: str
    fields: Mapping[str, Field]
    queryable: bool = True
    bulk: bool = True
    replicateable: bool = True
    deletable: bool = True
    children: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        return PREFIXES[self.name]

    @property
    def cursor(self) -> str:
        return next(name for name in CURSORS if name in self.fields)

    @property
    def changes(self) -> bool:
        """Whether records of it can change: those with a stamp of changes can."""
        return self.cursor in CURSORS[:2]


def _object(name: str) -> ObjectInfo:
    fields = parse_fields(f"{_COMMON.get(name, _ALL)} {_FIELDS[name]}")
    if name == "TopicAssignment":
        fields["SystemModstamp"] = replace(fields["SystemModstamp"], filterable=False)
    if "FirstName" in fields:
        for part in ("FirstName", "LastName", "Salutation"):
            if part in fields:
                fields[part] = replace(fields[part], compound="Name")
    return ObjectInfo(
        name,
        MappingProxyType(fields),
        queryable=name != "ActivityHistory",
        bulk=name != "CaseStatus",
        replicateable=name not in _UNREPLICATED,
        deletable="IsDeleted" in fields and "SystemModstamp" in fields,
        children=_CHILDREN.get(name, {}),
    )


_UNREPLICATED = {"CaseHistory", "CaseShare", "LoginHistory", "ActivityHistory"}
_CHILDREN = {
    "Account": {
        "Contacts": ("Contact", "AccountId"),
        "Cases": ("Case", "AccountId"),
        "Opportunities": ("Opportunity", "AccountId"),
        "Projects__r": ("Project__c", "Account__c"),
    },
    "Contact": {"Cases": ("Case", "ContactId")},
    "Opportunity": {"OpportunityLineItems": ("OpportunityLineItem", "OpportunityId")},
}

OBJECTS: dict[str, ObjectInfo] = {name: _object(name) for name in _FIELDS}
TABLES = tuple(OBJECTS)
