"""The eight objects that the simulator serves: their paths and the names of their fields.

Source: `connectwise_fields.json` [NPM], plus the fields that live rows add [SAMPLE]. A condition on
any other name is refused, as the service refuses it.
"""

from __future__ import annotations

PATHS = {
    "tickets": "service/tickets",
    "time_entries": "time/entries",
    "companies": "company/companies",
    "contacts": "company/contacts",
    "products": "procurement/products",
    "agreements": "finance/agreements",
    "projects": "project/projects",
    "members": "system/members",
}
"""Table name to path below the API root."""

TABLES = tuple(PATHS)
TABLE_OF_PATH = {path: table for table, path in PATHS.items()}

_EVERYWHERE = "_info lastUpdated updatedBy dateEntered enteredBy customFields"

_FIELDS = {
    "tickets": """
        id summary recordType board status workRole workType company site siteName
        addressLine1 addressLine2 city stateIdentifier zip country contact contactName
        contactPhoneNumber contactPhoneExtension contactEmailAddress type subType item team
        owner priority serviceLocation source requiredDate budgetHours opportunity agreement
        severity impact externalXRef poNumber knowledgeBaseCategoryId
        knowledgeBaseSubCategoryId allowAllClientsPortalView customerUpdatedFlag
        automaticEmailContactFlag automaticEmailResourceFlag automaticEmailCcFlag
        automaticEmailCc initialDescription initialInternalAnalysis initialResolution
        initialDescriptionFrom contactEmailLookup processNotifications skipCallback
        closedDate closedBy closedFlag actualHours approved estimatedExpenseCost
        estimatedExpenseRevenue estimatedProductCost estimatedProductRevenue
        estimatedTimeCost estimatedTimeRevenue billingMethod billingAmount hourlyRate
        subBillingMethod subBillingAmount subDateAccepted dateResolved dateResplan
        dateResponded resolveMinutes resPlanMinutes respondMinutes isInSla
        knowledgeBaseLinkId resources parentTicketId hasChildTicket hasMergedChildTicketFlag
        knowledgeBaseLinkType billTime billExpenses billProducts predecessorType
        predecessorId predecessorClosedFlag lagDays lagNonworkingDaysFlag estimatedStartDate
        duration location department mobileGuid sla slaStatus currency mergedParentTicket
        integratorTags
    """,
    "time_entries": """
        id company chargeToId chargeToType member locationId businessUnitId workType
        workRole agreement timeStart timeEnd hoursDeduct actualHours billableOption notes
        internalNotes addToDetailDescriptionFlag addToInternalAnalysisFlag
        addToResolutionFlag emailResourceFlag emailContactFlag emailCcFlag emailCc
        hoursBilled invoiceHours enteredBy dateEntered invoice mobileGuid hourlyRate
        overageRate agreementHours agreementAmount timeSheet status ticket project phase
        hourlyCost invoiceReady ticketBoard ticketStatus territory
    """,
    "companies": """
        id identifier name status addressLine1 addressLine2 city state zip country
        phoneNumber faxNumber website territory market accountNumber defaultContact
        dateAcquired sicCode parentCompany annualRevenue numberOfEmployees yearEstablished
        revenueYear ownershipType timeZoneSetup leadSource leadFlag unsubscribeFlag calendar
        userDefinedField1 userDefinedField2 userDefinedField3 userDefinedField4
        userDefinedField5 userDefinedField6 userDefinedField7 userDefinedField8
        userDefinedField9 userDefinedField10 vendorIdentifier taxIdentifier taxCode
        billingTerms invoiceTemplate pricingSchedule companyEntityType billToCompany
        billingSite billingContact invoiceDeliveryMethod invoiceToEmailAddress
        invoiceCCEmailAddress deletedFlag dateDeleted deletedBy mobileGuid facebookUrl
        twitterUrl linkedInUrl currency territoryManager resellerIdentifier isVendorFlag
        types site integratorTags
    """,
    "contacts": """
        id firstName lastName company site addressLine1 addressLine2 city state zip country
        relationship relationshipOverride department inactiveFlag defaultMergeContactId
        securityIdentifier managerContact assistantContact title school nickName marriedFlag
        childrenFlag children significantOther portalPassword portalSecurityLevel
        disablePortalLoginFlag unsubscribeFlag gender birthDay anniversary presence
        mobileGuid facebookUrl twitterUrl linkedInUrl defaultPhoneType defaultPhoneNbr
        defaultPhoneExtension defaultBillingFlag defaultFlag userDefinedField1
        userDefinedField2 userDefinedField3 userDefinedField4 userDefinedField5
        userDefinedField6 userDefinedField7 userDefinedField8 userDefinedField9
        userDefinedField10 companyLocation communicationItems types integratorTags photo
        ignoreDuplicates typeIds
    """,
    "products": """
        id catalogItem description sequenceNumber quantity price cost discount
        agreementAmount priceMethod billableOption agreement locationId businessUnitId
        vendor vendorSku taxableFlag dropshipFlag specialOrderFlag phaseProductFlag
        cancelledFlag quantityCancelled cancelledReason customerDescription internalNotes
        productSuppliedFlag subContractorShipToId subContractorAmountLimit recurring sla
        entityType ticket project phase salesOrder opportunity invoice warehouseId
        warehouseBinId calculatedPriceFlag calculatedCostFlag forecastDetailId cancelledBy
        cancelledDate warehouse warehouseBin purchaseDate integrationXRef listPrice
        serialNumberIds company forecastStatus productClass needToPurchaseFlag
        needToOrderQuantity minimumStockFlag shipSet calculatedPrice calculatedCost
        invoiceGrouping poApprovedFlag addComponentsFlag ignorePricingSchedulesFlag
        bypassForecastUpdate
    """,
    "agreements": """
        id name type company contact site subContractCompany subContractContact
        parentAgreement customerPO location department restrictLocationFlag
        restrictDepartmentFlag startDate endDate noEndingDateFlag opportunity cancelledFlag
        dateCancelled reasonCancelled sla workOrder internalNotes applicationUnits
        applicationLimit applicationCycle applicationUnlimitedFlag oneTimeFlag
        coverAgreementTime coverAgreementProduct coverAgreementExpense coverSalesTax
        carryOverUnused allowOverruns expiredDays limit expireWhenZero chargeToFirm
        employeeCompRate employeeCompNotExceed compHourlyRate compLimitAmount billingCycle
        billOneTimeFlag billingTerms invoicingCycle billToCompany billToContact billToSite
        billAmount taxable prorateFirstBill billStartDate taxCode restrictDownPayment
        prorateFlag invoiceDescription topComment bottomComment workRole workType
        projectType invoiceTemplate billTime billExpenses billProducts billableTimeInvoice
        billableExpenseInvoice billableProductInvoice currency periodType autoInvoiceFlag
        nextInvoiceDate companyLocation agreementStatus
    """,
    "projects": """
        id actualEnd actualHours actualStart agreement billExpenses billingAmount
        billingAttention billingMethod billingRateType billingTerms billProducts
        billProjectAfterClosedFlag billTime billToCompany billToContact billToSite
        billUnapprovedTimeAndExpense board budgetAnalysis budgetFlag budgetHours company
        contact customerPO description currency downpayment estimatedEnd percentComplete
        estimatedExpenseRevenue estimatedHours estimatedProductRevenue estimatedStart
        estimatedTimeRevenue expenseApprover includeDependenciesFlag includeEstimatesFlag
        location department manager name opportunity projectTemplateId
        restrictDownPaymentFlag scheduledEnd scheduledHours scheduledStart shipToCompany
        shipToContact shipToSite site status closedFlag timeApprover type
        doNotDisplayInPortalFlag billingStartDate estimatedTimeCost estimatedExpenseCost
        estimatedProductCost taxCode companyLocation
    """,
    "members": """
        id identifier password firstName middleInitial lastName title reportCard
        licenseClass disableOnlineFlag enableMobileFlag type employeeIdentifer vendorNumber
        notes timeZone country serviceBoardTeamIds enableMobileGpsFlag inactiveDate
        inactiveFlag lastLogin photo partnerPortalFlag clientId stsUserAdminUrl token
        toastNotificationFlag memberPersonas office365 officeEmail officePhone
        officeExtension mobileEmail mobilePhone mobileExtension homeEmail homePhone
        homeExtension defaultEmail primaryEmail defaultPhone securityRole adminFlag
        structureLevel securityLocation defaultLocation defaultDepartment reportsTo
        restrictLocationFlag restrictDepartmentFlag workRole workType timeApprover
        expenseApprover billableForecast dailyCapacity hourlyCost hourlyRate
        includeInUtilizationReportingFlag requireExpenseEntryFlag requireTimeSheetEntryFlag
        requireStartAndEndTimeOnTimeEntryFlag allowInCellEntryOnTimeSheet
        enterTimeAgainstCompanyFlag allowExpensesEnteredAgainstCompaniesFlag
        timeReminderEmailFlag daysTolerance minimumHours timeSheetStartDate hireDate
        serviceDefaultLocation serviceDefaultDepartment serviceDefaultBoard
        restrictServiceDefaultLocationFlag restrictServiceDefaultDepartmentFlag
        excludedServiceBoardIds projectDefaultLocation projectDefaultDepartment
        projectDefaultBoard restrictProjectDefaultLocationFlag
        restrictProjectDefaultDepartmentFlag excludedProjectBoardIds scheduleDefaultLocation
        scheduleDefaultDepartment scheduleCapacity serviceLocation restrictScheduleFlag
        hideMemberInDispatchPortalFlag calendar salesDefaultLocation
        restrictDefaultSalesTerritoryFlag warehouse warehouseBin
        restrictDefaultWarehouseFlag restrictDefaultWarehouseBinFlag mapiName
        calendarSyncIntegrationFlag enableLdapAuthenticationFlag ldapConfiguration
        ldapUserName companyActivityTabFormat invoiceTimeTabFormat
        invoiceScreenDefaultTabFormat invoicingDisplayOptions
        agreementInvoicingDisplayOptions authenticationServiceType
        timebasedOneTimePasswordActivated ssoSettings autoStartStopwatch
        autoPopupQuickNotesWithStopwatch signature globalSearchDefaultTicketFilter
        globalSearchDefaultSort phoneSource phoneIntegrationType useBrowserLanguageFlag
        copyPodLayouts copySharedDefaultViews copyColumnLayoutsAndFilters fromMemberRecId
    """,
}

FIELDS: dict[str, frozenset[str]] = {
    table: frozenset(f"{names} {_EVERYWHERE}".split()) for table, names in _FIELDS.items()
}
"""Table name to the root names that a condition may use."""
